"""The second half of preparing one file: pack the documents that are kept into rows, and write its shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megadistill.core.files import atomic_write
from megadistill.data.decide import Fate, Fates
from megadistill.data.encode import Encoded, encoded
from megadistill.data.index import Shard
from megadistill.data.packing import PACKERS, Frame, Packing
from megadistill.data.shards import ShardWriter, token_dtype
from megadistill.data.statistics import LENGTH_BINS, length_histogram

Tokens = NDArray[np.integer]


@dataclass(frozen=True)
class Shape:
    """What rows look like."""

    packing: Packing
    length: int
    frame: Frame
    vocabulary_size: int


@dataclass(frozen=True)
class Packed:
    """What came of one task, or of all held-out documents."""

    shards: list[Shard]
    documents: int
    counts: NDArray[np.int64]
    """[vocabulary] how often each id occurs in the rows."""
    lengths: NDArray[np.int64]
    """[LENGTH_BINS] documents by length."""


def documents(file: Encoded, fates: Fates, fate: Fate) -> Iterator[Tokens]:
    """The ids of the documents with a fate, in order."""
    ends, tokens = np.cumsum(file.lengths), file.tokens()
    for number in np.flatnonzero(fates == fate).tolist():
        yield np.asarray(tokens[ends[number] - file.lengths[number] : ends[number]])


@dataclass(frozen=True)
class Folders:
    """Where a corpus on its way keeps what."""

    making: Path

    @property
    def encoded(self) -> Path:
        """What `encode` leaves of each task."""
        return self.making / "encoded"

    @property
    def notes(self) -> Path:
        """What `pack_task` tells of each task, whose shards are then written."""
        return self.making / "notes"

    @property
    def ready(self) -> Path:
        """What takes the corpus's place in the end."""
        return self.making / "ready"

    def make(self) -> None:
        for folder in (self.encoded, self.notes, self.ready / "train", self.ready / "held_out"):
            folder.mkdir(parents=True, exist_ok=True)


def pack_task(
    folders: Folders, number: int, fates: Fates, shape: Shape, stem: str, tell: Callable[[int], None]
) -> None:
    """Write the training shards of one task, unless they are written; `packed` tells what they are."""
    note = folders.notes / f"{number:06d}.npz"
    if note.exists():
        return
    file = encoded(folders.encoded, number, token_dtype(shape.vocabulary_size), check=True)
    made = pack(documents(file, fates, Fate.TRAIN), shape, folders.ready / "train", stem, number)
    tell(int(file.characters.sum()))
    with atomic_write(note, "wb") as handle:
        np.savez_compressed(
            handle,
            shards=np.array([[s.part, s.rows, s.size, len(s.checksums)] for s in made.shards], np.int64).reshape(-1, 4),
            sha256=np.frombuffer(b"".join(s.sha256 for s in made.shards), np.uint8),
            checksums=np.concatenate([np.empty(0, np.uint64), *(s.checksums for s in made.shards)]),
            documents=made.documents,
            counts=made.counts,
            lengths=made.lengths,
        )


def packed(folders: Folders, number: int) -> Packed:
    """What `pack_task` made."""
    with np.load(folders.notes / f"{number:06d}.npz") as found:
        shards, cut = [], 0
        digests = found["sha256"].reshape(-1, 32)
        for (part, rows, size, members), digest in zip(found["shards"].tolist(), digests, strict=True):
            checksums = found["checksums"][cut : cut + members]
            shards.append(Shard(number, part, rows, size, digest.tobytes(), checksums))
            cut += members
        return Packed(shards, int(found["documents"]), found["counts"], found["lengths"])


def merged(parts: Iterable[Packed], vocabulary_size: int) -> Packed:
    """All tasks together."""
    shards: list[Shard] = []
    documents = 0
    counts, lengths = np.zeros(vocabulary_size, dtype=np.int64), np.zeros(LENGTH_BINS, dtype=np.int64)
    for part in parts:
        shards += part.shards
        documents += part.documents
        counts += part.counts
        lengths += part.lengths
    return Packed(shards, documents, counts, lengths)


def pack(
    texts: Iterator[Tokens], shape: Shape, folder: Path, stem: str, task: int, max_rows: int | None = None
) -> Packed:
    """Pack documents and write them as the shards of a task."""
    writer = ShardWriter(folder, stem, task, shape.vocabulary_size)
    counts = np.zeros(shape.vocabulary_size, dtype=np.int64)
    lengths: list[int] = []

    def counted() -> Iterator[Tokens]:
        for document in texts:
            lengths.append(len(document))
            yield document

    for tokens, segments in PACKERS[shape.packing](counted(), shape.length, shape.frame):
        room = len(tokens) if max_rows is None else max_rows - writer.rows - writer.waiting_rows
        writer.add(tokens[:room], segments[:room])
        counts += np.bincount(tokens[:room][segments[:room] > 0], minlength=len(counts))
        if room <= len(tokens) and max_rows is not None:
            break
    shards = writer.finish()
    return Packed(shards, len(lengths), counts, length_histogram(np.array(lengths, dtype=np.int64)))
