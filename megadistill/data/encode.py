"""The first half of preparing one file: read its documents, tokenise them, and note what later decides their fate.

What comes out lies in a folder of its own, `<task>.tokens` (ids one after another) and then `<task>.npz` (a line a
document), so that a task whose second file is there is done for good, whoever is killed when.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from megadistill.core.errors import UserError
from megadistill.core.files import atomic_write, fsync_directory
from megadistill.data.contamination import Contamination, Decontaminate
from megadistill.data.corpora.base import Corpus, Source
from megadistill.data.documents import batches, content_hash, read
from megadistill.data.duplicates import NearDuplicates, Sketcher
from megadistill.data.shards import token_dtype
from megadistill.data.tokenization import Tokenizer, load_tokenizer

BATCH_CHARACTERS = 4_000_000
"""Text that is tokenised at once."""

TASK_BYTES = 4_000_000
"""Small neighbouring sources form one task until they have so many bytes."""


@dataclass(frozen=True)
class Task:
    """Sources that are read in one go."""

    number: int
    sources: list[Source]

    @property
    def size(self) -> int:
        return sum(source.size for source in self.sources)


@dataclass(frozen=True)
class Recipe:
    """How the documents of a corpus become ids."""

    corpus: Corpus
    tokenizer: str
    near: NearDuplicates | None
    decontaminate: Decontaminate | None
    settings: str
    """Hash of all of it, and of what the evaluation files hold."""


@dataclass(frozen=True)
class Encoded:
    """What is known of the documents [n] of one task."""

    file: Path
    """Holds their ids, one after another."""
    dtype: np.dtype[np.unsignedinteger]
    """Of the ids."""
    lengths: NDArray[np.int64]
    """Ids of each; a document that its own file had before has none."""
    hashes: NDArray[np.uint64]
    characters: NDArray[np.int64]
    contaminated: NDArray[np.bool_]
    sketches: NDArray[np.uint32]
    """[n, permutations]; no columns without `near_duplicates`."""

    def tokens(self) -> NDArray[np.unsignedinteger]:
        """[sum of lengths] the ids, mapped. Not kept: a map holds an open file, and there may be many tasks."""
        return np.memmap(self.file, self.dtype, "r") if self.lengths.sum() else np.empty(0, self.dtype)


def tasks(sources: Iterable[Source]) -> list[Task]:
    """Sources in their order, one a task, small neighbours together."""
    groups: list[list[Source]] = []
    size = 0
    for source in sources:
        if groups and source.size and size + source.size <= TASK_BYTES and all(s.size for s in groups[-1]):
            groups[-1].append(source)
            size += source.size
        else:
            groups.append([source])
            size = source.size
    return [Task(number, group) for number, group in enumerate(groups)]


def encode(task: Task, recipe: Recipe, folder: Path, tell: Callable[[int], None]) -> None:
    """Do one task, unless it is done.

    Args:
        folder: of all encoded tasks of the corpus.
        tell: is told how many characters were done, now and then.

    Raises:
        UserError: a source is not what its name or the config says.
    """
    if (folder / f"{task.number:06d}.npz").exists():
        return
    tokenizer, dtype = _tokenizer(recipe.tokenizer), token_dtype(_tokenizer(recipe.tokenizer).vocabulary_size)
    contamination = None if recipe.decontaminate is None else _contamination(recipe)
    sketcher = None if recipe.near is None else Sketcher(recipe.near)
    hashes: list[int] = []
    characters: list[int] = []
    contaminated: list[bool] = []
    lengths: list[int] = []
    sketches: list[NDArray[np.uint32]] = []
    seen: set[int] = set()
    with atomic_write(folder / f"{task.number:06d}.tokens", "wb") as handle:
        digest = xxhash.xxh3_64()
        for texts in batches(read(recipe.corpus, task.sources), BATCH_CHARACTERS):
            fresh = []
            for text in texts:
                hashes.append(content_hash(text))
                characters.append(len(text))
                fresh.append(hashes[-1] not in seen)
                seen.add(hashes[-1])
                is_bad = contamination is not None and fresh[-1] and contamination.found_in(text)
                contaminated.append(is_bad)
                if sketcher is not None:
                    sketches.append(sketcher.sketch(text))
            kept = iter(tokenizer.encode_batch([text for text, new in zip(texts, fresh, strict=True) if new]))
            ids = [next(kept) if new else [] for new in fresh]
            lengths += map(len, ids)
            block = np.fromiter(chain.from_iterable(ids), dtype).tobytes()
            digest.update(block)
            handle.write(block)
            tell(sum(map(len, texts)))
        width = 0 if recipe.near is None else recipe.near.permutations
        with atomic_write(folder / f"{task.number:06d}.facts", "wb") as facts:
            np.savez(
                facts,
                checksum=np.uint64(digest.intdigest()),
                lengths=np.array(lengths, dtype=np.int64),
                hashes=np.array(hashes, dtype=np.uint64),
                characters=np.array(characters, dtype=np.int64),
                contaminated=np.array(contaminated, dtype=np.bool_),
                sketches=np.array(sketches, dtype=np.uint32).reshape(len(hashes), width),
            )
    os.replace(folder / f"{task.number:06d}.facts", folder / f"{task.number:06d}.npz")
    fsync_directory(folder)


def encoded(folder: Path, number: int, dtype: np.dtype[np.unsignedinteger], *, check: bool = False) -> Encoded:
    """What `encode` left of a task.

    Args:
        check: also read the ids and compare their checksum.

    Raises:
        UserError: the files are damaged; they are removed, so that starting again makes them again.
    """
    facts, tokens = folder / f"{number:06d}.npz", folder / f"{number:06d}.tokens"
    try:
        with np.load(facts) as found:
            values = {name: found[name] for name in found.files}
        expected = int(values.pop("checksum"))
        result = Encoded(tokens, dtype, **values)
        size = int(result.lengths.sum()) * dtype.itemsize
        if tokens.stat().st_size != size or (check and xxhash.xxh3_64_intdigest(result.tokens().data) != expected):
            raise ValueError("the ids are not those that were written")
        return result
    except (OSError, ValueError, KeyError, TypeError) as error:
        facts.unlink(missing_ok=True)
        raise UserError(f"{facts} is damaged", str(error), "start `prepare` again: it makes it again") from None


@lru_cache(maxsize=2)
def _tokenizer(spec: str) -> Tokenizer:
    return load_tokenizer(spec)


_contaminations: dict[str, Contamination] = {}


def _contamination(recipe: Recipe) -> Contamination:
    """Read once a process."""
    assert recipe.decontaminate is not None
    if recipe.settings not in _contaminations:
        _contaminations.clear()
        _contaminations[recipe.settings] = Contamination(recipe.decontaminate)
    return _contaminations[recipe.settings]
