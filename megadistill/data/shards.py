"""How rows are written to disk: uncompressed tars that plain `webdataset` reads, their members at known places.

A member is a run of rows, `<key>.segments.npy` and `<key>.tokens.npy`, [rows, length] each. All members but a tar's
last have the same number of rows, so that where a row lies is arithmetic (`Layout`).
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from megadistill.core.files import fsync_directory
from megadistill.data.index import Index, Shard, shard_name, write_index
from megadistill.data.packing import Rows

ROWS_PER_MEMBER = 256
SHARD_BYTES = 256_000_000
BLOCK = 512
"""Of a tar: headers take one, contents whole ones."""


@dataclass(frozen=True)
class Layout:
    """Where things are in a tar of rows [*, length], tokens of `itemsize` bytes."""

    rows: int
    """Of a member; a tar's last may have fewer."""
    length: int
    itemsize: int

    @property
    def stride(self) -> int:
        """Bytes from one whole member to the next."""
        return self.pair(self.rows)

    def pair(self, rows: Any) -> Any:
        """Bytes of a member of so many rows."""
        return self._file(rows * self.length * self.itemsize) + self._file(rows * self.length * 2)

    def row(self, member: Any, row: Any, rows: Any) -> tuple[Any, Any]:
        """Offsets of the first token and the first segment number of a row of a member that has so many rows; of ints,
        or of arrays of them."""
        start = member * self.stride + BLOCK + NPY_HEADER
        tokens = start + self._file(rows * self.length * 2) + row * self.length * self.itemsize
        return tokens, start + row * self.length * 2

    def _file(self, data: Any) -> Any:
        return BLOCK + -(-(NPY_HEADER + data) // BLOCK) * BLOCK


NPY_HEADER = 128
"""Bytes before an array in a .npy file of two dimensions."""


def token_dtype(vocabulary_size: int) -> np.dtype[Any]:
    return np.dtype(np.uint16 if vocabulary_size <= 1 << 16 else np.uint32)


def member_key(task: int, row: int) -> str:
    """The webdataset key of the member that begins with the so manieth row of a task."""
    return f"{task:06d}-{row:010d}"


def npy(array: NDArray[Any]) -> bytes:
    """The bytes of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@lru_cache(maxsize=64)
def npy_header(rows: int, length: int, dtype: str) -> bytes:
    """What stands before an array in a .npy file."""
    return npy(np.empty((rows, length), dtype=dtype))[:NPY_HEADER]


def checksum(tokens: NDArray[Any], segments: NDArray[Any]) -> int:
    """xxh3 (64 bits) of a member's numbers."""
    digest = xxhash.xxh3_64(tokens.data)
    digest.update(segments.data)
    return digest.intdigest()


class ShardWriter:
    """Writes the rows of one task into tars of about SHARD_BYTES; each tar appears whole or not at all.

    Args:
        folder: exists; only `write_index` makes it readable.
        stem: what the tars' names begin with.
        task: number of the task, which is in their names too.
        vocabulary_size: all tokens are below it.
    """

    def __init__(self, folder: Path, stem: str, task: int, vocabulary_size: int) -> None:
        self.folder, self.stem, self.task, self.vocabulary_size = folder, stem, task, vocabulary_size
        self.dtype = token_dtype(vocabulary_size)
        self.shards: list[Shard] = []
        self.rows = 0
        self.waiting_rows = 0
        self._waiting: list[Rows] = []
        self._members: list[tuple[str, Rows]] = []
        self._members_bytes = 0

    def add(self, tokens: NDArray[np.int64], segments: NDArray[np.uint16]) -> None:
        """Take a block of rows [n, length]."""
        assert tokens.size == 0 or 0 <= tokens.min() <= tokens.max() < self.vocabulary_size
        self._waiting.append((tokens.astype(self.dtype), segments))
        self.waiting_rows += len(tokens)
        if self.waiting_rows >= ROWS_PER_MEMBER:
            self._cut(whole=True)

    def finish(self) -> list[Shard]:
        """Write what is left; all shards of the task."""
        self._cut(whole=False)
        if self._members:
            self._write_shard()
        return self.shards

    def _cut(self, *, whole: bool) -> None:
        """Make members of the waiting rows: whole ones, or all."""
        if not self.waiting_rows:
            return
        tokens = np.concatenate([t for t, _ in self._waiting])
        segments = np.concatenate([s for _, s in self._waiting])
        end = len(tokens) // ROWS_PER_MEMBER * ROWS_PER_MEMBER if whole else len(tokens)
        for start in range(0, end, ROWS_PER_MEMBER):
            stop = min(start + ROWS_PER_MEMBER, end)
            self._members.append((member_key(self.task, self.rows), (tokens[start:stop], segments[start:stop])))
            self._members_bytes += (stop - start) * tokens.shape[1] * (self.dtype.itemsize + 2)
            self.rows += stop - start
            if self._members_bytes >= SHARD_BYTES:
                self._write_shard()
        self._waiting, self.waiting_rows = [(tokens[end:], segments[end:])], len(tokens) - end

    def _write_shard(self) -> None:
        import webdataset

        part = len(self.shards)
        path = self.folder / shard_name(self.stem, self.task, part)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        checksums = []
        length = self._members[0][1][0].shape[1]
        layout = Layout(ROWS_PER_MEMBER, length, self.dtype.itemsize)
        try:
            with open(temporary, "wb") as handle:
                hashed = _Hashed(handle)
                with webdataset.TarWriter(hashed, encoder=False, mtime=0) as tar:
                    for number, (key, (tokens, segments)) in enumerate(self._members):
                        files = {"tokens.npy": npy(tokens), "segments.npy": npy(segments)}
                        assert len(files["tokens.npy"]) == NPY_HEADER + tokens.nbytes
                        tar.write({"__key__": key, **files})
                        assert tar.tarstream.offset == number * layout.stride + layout.pair(len(tokens))
                        checksums.append(checksum(np.ascontiguousarray(tokens), np.ascontiguousarray(segments)))
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_directory(self.folder)
        rows = sum(len(tokens) for _, (tokens, _) in self._members)
        made = np.array(checksums, dtype=np.uint64)
        self.shards.append(Shard(self.task, part, rows, hashed.bytes, hashed.sha256.digest(), made))
        self._members, self._members_bytes = [], 0


def write_shards(folder: Path, stem: str, about: dict[str, Any], blocks: Sequence[Rows]) -> Index:
    """A whole folder from blocks of rows, in one go."""
    writer = ShardWriter(folder, stem, 0, about["vocabulary_size"])
    for tokens, segments in blocks:
        writer.add(tokens, segments)
    return write_index(folder, stem, about | {"dtype": writer.dtype.name}, writer.finish(), ROWS_PER_MEMBER)


class _Hashed:
    """A file being written, with the hash and the number of what went into it."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle, self.sha256, self.bytes = handle, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        self.bytes += len(data)
        return self._handle.write(data)
