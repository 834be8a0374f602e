"""Which documents hold text of the evaluation sets: those that share a run of n words with them (Brown et al. 2020).

The published procedure cuts windows out of a document; here the document is dropped and counted.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.core.files import sha256_file
from megadistill.core.schema import Strict
from megadistill.data.corpora.base import Source
from megadistill.data.corpora.files import expand, lines, open_file

U64 = NDArray[np.uint64]

WORD = re.compile(r"[^\W_]+")
PARQUET_READS = "every text"
"""Part of the key of shards that are compared with parquet; change it with what is read of such a file."""
_MULTIPLIER = 0x9E3779B97F4A7C15


class Decontaminate(Strict):
    """What must not be trained on."""

    files: list[str] = Field(min_length=1)
    """Paths, globs or fsspec urls of evaluation files: .json, .jsonl and .parquet (every text in them), or lines of
    text (.tsv: its cells)."""
    words: int = Field(13, ge=3, le=64)
    """A document goes that has so many words in a row in common with one of their texts, blind to case and
    punctuation (GPT-3: 13). Shorter texts cannot be recognised."""


class Contamination:
    """Recognises documents that share a run of words with evaluation files.

    Raises:
        UserError: a file is missing, not what its name says, or without any text.
    """

    def __init__(self, config: Decontaminate) -> None:
        self.words = config.words
        runs = [run for source in sources(config) for run in self._runs_of(source)]
        self.known: U64 = np.unique(np.concatenate(runs))

    def found_in(self, text: str) -> bool:
        """Whether a document holds a known run."""
        runs = _runs(text, self.words)
        if not runs.size or not self.known.size:
            return False
        place = np.minimum(np.searchsorted(self.known, runs), len(self.known) - 1)
        return bool((self.known[place] == runs).any())

    def _runs_of(self, source: Source) -> list[U64]:
        runs = [_runs(text, self.words) for text in _texts(source) if text.strip()]
        if not runs:
            fix = "take it out of data.decontaminate: files, or give the file that holds the text"
            raise UserError(f"{source.name} holds no text to recognise", "", fix)
        return runs


def sources(config: Decontaminate) -> list[Source]:
    """The evaluation files, each stamped with its content where it is local, and with what is read of it."""
    return [Source(s.name, _stamp(s), s.size) for s in expand(config.files, "decontaminate")]


def _stamp(source: Source) -> str:
    content = source.stamp if "://" in source.name else sha256_file(Path(source.name))
    return f"{content}:{PARQUET_READS}" if source.name.endswith(".parquet") else content


def _runs(text: str, words: int) -> U64:
    """A 64-bit hash of every run of `words` words: sum of word hashes times powers of an odd number."""
    hashes = np.array([zlib.crc32(word.encode()) for word in WORD.findall(text.casefold())], dtype=np.uint64)
    number = len(hashes) - words + 1
    if number <= 0:
        return np.empty(0, dtype=np.uint64)
    total = np.zeros(number, dtype=np.uint64)
    for place in range(words):
        power = np.uint64(pow(_MULTIPLIER, words - place, 1 << 64))
        total += (hashes[place : place + number] + np.uint64(1)) * power
    return total


def _texts(source: Source) -> Iterator[str]:
    name = source.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".parquet"):
        yield from _parquet(source)
    elif name.endswith((".json", ".jsonl")):
        whole = name.endswith(".json")
        documents = ["\n".join(line for _, line in lines(source))] if whole else (line for _, line in lines(source))
        for number, document in enumerate(documents, 1):
            if not document.strip():
                continue
            try:
                yield from _strings(json.loads(document))
            except json.JSONDecodeError as error:
                where = source.name if whole else f"{source.name} line {number}"
                raise UserError(f"{where} is not JSON", str(error), "see data.decontaminate: files") from None
    else:
        for _, line in lines(source):
            yield from line.split("\t")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple | dict):
        for child in value.values() if isinstance(value, dict) else value:
            yield from _strings(child)


def _parquet(source: Source) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_file(source) as raw:
        try:
            table = pq.ParquetFile(raw)
            names = [field.name for field in table.schema_arrow if _holds_text(field.type)]
            for batch in table.iter_batches(batch_size=256, columns=names):
                for column in batch.columns:
                    yield from _strings(column.to_pylist())
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{source.name} cannot be read as parquet", str(error), "get it again") from None


def _holds_text(kind: Any) -> bool:
    """Whether values of an arrow type are strings, or hold some at any depth."""
    import pyarrow.types as types

    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return True
    if types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    return any(_holds_text(kind.field(number).type) for number in range(kind.num_fields))
