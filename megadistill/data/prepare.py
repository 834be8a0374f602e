"""How corpora become shards, once: read, drop duplicates, hold out, tokenise, pack, write, swap in whole."""

from __future__ import annotations

import errno
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megadistill.core.errors import UserError
from megadistill.core.files import atomic_write, fsync_directory, sha256_json, write_json
from megadistill.data.config import DataConfig
from megadistill.data.corpora.base import Corpus, Source
from megadistill.data.documents import Sieve, batches, read
from megadistill.data.packing import PACKERS, Frame
from megadistill.data.shards import INDEX, ShardWriter, verify
from megadistill.data.stream import COUNTS
from megadistill.data.tokenization import Tokenizer, load_tokenizer

PREPARE_VERSION = 1
"""Part of the key; raise it when the same corpus would give other rows."""

STATS = "stats.json"
PARTS = ("train", "held_out")
BATCH_CHARACTERS = 4_000_000
"""Text that is tokenised at once."""

LOG_SECONDS = 10
"""How often a long corpus says how far it is."""

_OTHER_DIR = "set another data.dir"

Log = Callable[[str], None]


@dataclass(frozen=True)
class PartStats:
    """What one part of a corpus holds."""

    documents: int
    tokens: int
    """Separators included, padding not."""
    rows: int
    padding_share: float


@dataclass(frozen=True)
class CorpusStats:
    """What became of one corpus."""

    name: str
    key: str
    """Hash of everything that decides the rows; equal keys are not prepared again."""
    documents: int
    duplicates: int
    """Documents that were there before, word for word; dropped."""
    megabytes: float
    """Million characters kept."""
    unknown_share: float
    """Share of unknown tokens in training rows."""
    train: PartStats
    held_out: PartStats


@dataclass(frozen=True)
class Prepared:
    """Everything that is ready in `data.dir`."""

    dir: Path
    corpora: list[CorpusStats]
    fresh: list[str]
    """Names of the corpora that were made now; the others were there already."""


def prepare(config: DataConfig, log: Log) -> Prepared:
    """Make the shards of every corpus that has none yet, was made from something else, or is damaged.

    A corpus appears as a whole: it is made in a temporary folder beside its place and renamed. Whatever kills
    this leaves nothing that `train` would read.

    Raises:
        UserError: a corpus is missing, empty, or not what its name says; `data.dir` is no folder, or holds
            something else where the corpus belongs; the disk is full.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    try:
        config.dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"data.dir {config.dir} is no folder and cannot be made", str(error), _OTHER_DIR) from None
    stats, fresh = [], []
    for corpus in config.corpora:
        sources = corpus.sources()
        key = _key(config, corpus, sources, tokenizer)
        final = config.dir / corpus.name
        with _locked(config.dir / f".{corpus.name}.lock"):
            done = read_stats(final)
            same = done is not None and done.key == key
            problems = [problem for part in PARTS for problem in verify(final / part)] if same else []
            for problem in problems:
                log(f"{corpus.name}: making it again: {problem}")
            if done is not None and done.key == key and not problems:
                log(f"{corpus.name}: prepared already and sound, {done.train.rows:,} rows in {final}")
            else:
                log(f"{corpus.name}: reading {len(sources):,} source(s)")
                done = _prepare_corpus(config, corpus, sources, tokenizer, key, log)
                fresh.append(corpus.name)
        stats.append(done)
    return Prepared(config.dir, stats, fresh)


def read_stats(folder: Path) -> CorpusStats | None:
    """The stats of a prepared corpus; None if there is none."""
    if not all((folder / name).exists() for name in (STATS, COUNTS, *(f"{part}/{INDEX}" for part in PARTS))):
        return None
    try:
        values = json.loads((folder / STATS).read_text(encoding="utf-8"))
        return CorpusStats(**values | {part: PartStats(**values[part]) for part in PARTS})
    except (ValueError, TypeError, KeyError):  # of another version, or damaged: as good as none
        return None


# ------------------------------------------------------------------------------------------ one corpus


def _prepare_corpus(
    config: DataConfig, corpus: Corpus, sources: list[Source], tokenizer: Tokenizer, key: str, log: Log
) -> CorpusStats:
    final = config.dir / corpus.name
    _refuse_foreign(final)
    temporary, old = final.with_name(f".{corpus.name}.making"), final.with_name(f".{corpus.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    if old.exists() and not final.exists():
        old.rename(final)  # a kill between the two renames below
    shutil.rmtree(old, ignore_errors=True)
    try:
        for part in PARTS:
            (temporary / part).mkdir(parents=True)
        stats = _write(config, corpus, sources, tokenizer, key, temporary, log)
        if final.exists():
            final.rename(old)
        temporary.rename(final)
        fsync_directory(config.dir)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        written = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file()) / 1e6
        free = shutil.disk_usage(config.dir).free / 1e6
        raise UserError(
            f"corpus {corpus.name}: no space left in {config.dir}",
            f"{written:,.0f} MB were written before it was full ({free:,.0f} MB free), and are removed again",
            "set data.dir to a larger disk, or max_documents or max_megabytes of the corpus",
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
    log(
        f"{corpus.name}: {stats.documents:,} documents ({stats.duplicates:,} duplicates dropped), "
        f"{stats.megabytes:,.1f} MB -> {stats.train.tokens:,} tokens in {stats.train.rows:,} rows, "
        f"{stats.held_out.rows:,} held out"
    )
    return stats


def _write(
    config: DataConfig,
    corpus: Corpus,
    sources: list[Source],
    tokenizer: Tokenizer,
    key: str,
    folder: Path,
    log: Log,
) -> CorpusStats:
    """Fill `folder` with both parts, token counts and stats."""
    sieve = Sieve(config.held_out)
    held_out: list[NDArray[np.uint32]] = []
    limit = (config.held_out.max_rows or 0) * config.sequence_length

    def train_documents() -> Iterator[NDArray[np.uint32]]:
        """Training documents as they come; the few held-out ones wait in memory for their turn."""
        waiting, said = 0, time.monotonic()
        for texts in batches(sieve.kept(read(corpus, sources)), BATCH_CHARACTERS):
            encoded = tokenizer.encode_batch([text for text, _ in texts])
            for ids, (_, is_held_out) in zip(encoded, texts, strict=True):
                tokens = np.array(ids, dtype=np.uint32)
                if not is_held_out:
                    yield tokens
                elif not limit or waiting < limit:
                    held_out.append(tokens)
                    waiting += len(tokens)
            if time.monotonic() - said > LOG_SECONDS:
                log(f"{corpus.name}: {sieve.documents:,} documents, {sieve.characters / 1e6:,.0f} MB so far")
                said = time.monotonic()

    train, counts = _pack(config, tokenizer, train_documents(), folder / "train", corpus.name)
    held, _ = _pack(config, tokenizer, held_out, folder / "held_out", corpus.name, config.held_out.max_rows)
    if not train.rows:
        raise UserError(
            f"corpus {corpus.name} gives no training rows",
            f"{sieve.documents} document(s), {sieve.characters} characters in {len(sources)} source(s)",
            "check its files and options; very short documents are dropped by packing: split",
        )
    unknown = tokenizer.special.unk
    with atomic_write(folder / COUNTS, "wb") as handle:
        np.save(handle, counts)
    stats = CorpusStats(
        name=corpus.name,
        key=key,
        documents=sieve.documents,
        duplicates=sieve.duplicates,
        megabytes=round(sieve.characters / 1e6, 3),
        unknown_share=float(counts[unknown] / counts.sum()) if unknown is not None else 0.0,
        train=train,
        held_out=held,
    )
    write_json(folder / STATS, asdict(stats))
    return stats


def _pack(
    config: DataConfig,
    tokenizer: Tokenizer,
    documents: Iterable[NDArray[np.uint32]],
    folder: Path,
    name: str,
    max_rows: int | None = None,
) -> tuple[PartStats, NDArray[np.int64]]:
    """Pack documents into a folder of shards; also how often each id occurs in them."""
    special, length = tokenizer.special, config.sequence_length
    frame = Frame(special.cls, special.sep, special.padding)
    about = {
        "sequence_length": length,
        "tokenizer": tokenizer.fingerprint,
        "vocabulary_size": tokenizer.vocabulary_size,
        "special_ids": special.as_dict(),
    }
    writer = ShardWriter(folder, name, about)
    counts = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
    num_documents = 0

    def counted() -> Iterator[NDArray[np.uint32]]:
        nonlocal num_documents
        for document in documents:
            num_documents += 1
            yield document

    for tokens, segments in PACKERS[config.packing](counted(), length, frame):
        room = len(tokens) if max_rows is None else max(0, max_rows - writer.rows - writer.waiting_rows)
        tokens, segments = tokens[:room], segments[:room]
        writer.add(tokens, segments)
        counts += np.bincount(tokens[segments > 0], minlength=len(counts))
    index = writer.finish()
    num_tokens = int(counts.sum())
    padding = 1 - num_tokens / (index.rows * length) if index.rows else 0.0
    return PartStats(num_documents, num_tokens, index.rows, round(padding, 6)), counts


# ------------------------------------------------------------------------------------------ details


def _refuse_foreign(final: Path) -> None:
    """What stands in a corpus's place is about to be deleted: it may be the user's own text of the same name."""
    if not final.exists() or any((final / name).exists() for name in (STATS, f"{PARTS[0]}/{INDEX}")):
        return
    names = sorted(path.name for path in final.iterdir()) if final.is_dir() else [final.name]
    if names:
        raise UserError(
            f"{final} was not made by prepare, and would be replaced by the shards",
            f"it holds {', '.join(names[:6])}{', ...' if len(names) > 6 else ''}",
            _OTHER_DIR,
        )


def _key(config: DataConfig, corpus: Corpus, sources: list[Source], tokenizer: Tokenizer) -> str:
    return sha256_json(
        {
            "version": PREPARE_VERSION,
            "corpus": corpus.model_dump(mode="json", exclude={"weight"}),
            "sources": [asdict(source) for source in sources],
            "tokenizer": tokenizer.fingerprint,
            "sequence_length": config.sequence_length,
            "packing": config.packing,
            "held_out": config.held_out.model_dump(mode="json"),
        }
    )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process makes a corpus; others wait, and then find it made. A kill releases the lock."""
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def summary_table(prepared: Prepared) -> list[dict[str, Any]]:
    """One row per corpus for people to read."""
    return [
        {
            "corpus": stats.name,
            "documents": stats.documents,
            "duplicates": stats.duplicates,
            "train_tokens": stats.train.tokens,
            "train_rows": stats.train.rows,
            "held_out_rows": stats.held_out.rows,
            "padding": f"{stats.train.padding_share:.1%}",
            "unknown": f"{stats.unknown_share:.2%}",
        }
        for stats in prepared.corpora
    ]
