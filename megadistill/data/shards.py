"""How rows lie on disk, and how any of them is read back at once.

A folder of shards is one split of one corpus: uncompressed tars that plain `webdataset` reads (members
`<key>.tokens.npy` and `<key>.segments.npy`, [rows, length] each), and `index.json`, which says where in which
tar each member's numbers start, so that a row is one memory-mapped slice.
"""

from __future__ import annotations

import bisect
import io
import os
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from megadistill.core.errors import UserError
from megadistill.core.files import fsync_directory, sha256_file, sha256_json, write_json
from megadistill.core.schema import Strict
from megadistill.data.packing import Rows

FORMAT_VERSION = 1
INDEX = "index.json"
ROWS_PER_MEMBER = 256
SHARD_BYTES = 256_000_000
PREPARE_AGAIN = "run `megadistill prepare FILE`: it checks every byte and makes again what is damaged"


class Member(Strict):
    """A run of consecutive rows inside a tar."""

    rows: int
    tokens: int
    """Byte offset of its first token in the tar."""
    segments: int
    crc32: int
    """Of the bytes of tokens and segments; checked when the member is first read."""


class Shard(Strict):
    """One tar."""

    name: str
    bytes: int
    sha256: str
    rows: int
    members: list[Member]


class Index(Strict):
    """What a folder of shards holds."""

    format_version: int
    sequence_length: int
    dtype: str
    """Of the tokens: uint16 where the vocabulary allows, else uint32; segments are uint16."""
    tokenizer: str
    """The tokenizer's fingerprint."""
    vocabulary_size: int
    special_ids: dict[str, int | None]
    """pad, cls, sep, mask, unk."""
    rows: int
    shards: list[Shard]
    fingerprint: str
    """Of everything above: equal for equal rows, wherever they were made."""

    def computed_fingerprint(self) -> str:
        return sha256_json(self.model_dump(exclude={"fingerprint"}))


class ShardWriter:
    """Writes blocks of rows into tars of about SHARD_BYTES; each tar appears whole or not at all.

    Args:
        folder: exists and is empty; only `finish` makes it readable.
        name: stem of the tars' names.
        about: the fields of the index that say how the rows were made.
    """

    def __init__(self, folder: Path, name: str, about: dict[str, Any]) -> None:
        self.folder, self.name, self.about = folder, name, about
        self.dtype = np.dtype(np.uint16 if about["vocabulary_size"] <= 1 << 16 else np.uint32)
        self.shards: list[Shard] = []
        self.rows = 0
        self._waiting: list[Rows] = []
        self.waiting_rows = 0
        self._members: list[tuple[str, Rows]] = []
        self._members_bytes = 0

    def add(self, tokens: NDArray[np.int64], segments: NDArray[np.uint16]) -> None:
        """Take a block of rows [n, length]."""
        assert tokens.size == 0 or 0 <= tokens.min() <= tokens.max() < self.about["vocabulary_size"]
        self._waiting.append((tokens.astype(self.dtype), segments))
        self.waiting_rows += len(tokens)
        if self.waiting_rows >= ROWS_PER_MEMBER:
            self._cut(whole=True)

    def finish(self) -> Index:
        """Write what is left and the index."""
        self._cut(whole=False)
        if self._members:
            self._write_shard()
        values = {
            "format_version": FORMAT_VERSION,
            "dtype": self.dtype.name,
            "rows": self.rows,
            "shards": self.shards,
            **self.about,
        }
        index = Index(**values, fingerprint="")
        index = index.model_copy(update={"fingerprint": index.computed_fingerprint()})
        write_json(self.folder / INDEX, index.model_dump())
        return index

    def _cut(self, *, whole: bool) -> None:
        """Make members of the waiting rows: whole ones, or all."""
        if not self.waiting_rows:
            return
        tokens = np.concatenate([t for t, _ in self._waiting])
        segments = np.concatenate([s for _, s in self._waiting])
        end = len(tokens) // ROWS_PER_MEMBER * ROWS_PER_MEMBER if whole else len(tokens)
        for start in range(0, end, ROWS_PER_MEMBER):
            stop = min(start + ROWS_PER_MEMBER, end)
            self._members.append((f"{self.rows:012d}", (tokens[start:stop], segments[start:stop])))
            self._members_bytes += (stop - start) * tokens.shape[1] * (self.dtype.itemsize + 2)
            self.rows += stop - start
            if self._members_bytes >= SHARD_BYTES:
                self._write_shard()
        self._waiting, self.waiting_rows = [(tokens[end:], segments[end:])], len(tokens) - end

    def _write_shard(self) -> None:
        import webdataset

        path = self.folder / f"{self.name}-{len(self.shards):05d}.tar"
        temporary = path.with_name(f".{path.name}.tmp")
        with open(temporary, "wb") as handle:
            with webdataset.TarWriter(handle, encoder=False, mtime=0) as tar:
                for key, (tokens, segments) in self._members:
                    tar.write({"__key__": key, "tokens.npy": _npy(tokens), "segments.npy": _npy(segments)})
            handle.flush()
            os.fsync(handle.fileno())
        members = _located(temporary, [rows for _, rows in self._members])
        self.shards.append(
            Shard(
                name=path.name,
                bytes=temporary.stat().st_size,
                sha256=sha256_file(temporary),
                rows=sum(member.rows for member in members),
                members=members,
            )
        )
        os.replace(temporary, path)
        fsync_directory(self.folder)
        self._members, self._members_bytes = [], 0


class Shards:
    """Random access to the rows of one folder. Opening checks that every tar is there in full; a member's
    bytes are checked when it is first read, so a flipped byte is never trained on.

    Raises:
        UserError: the folder is no finished folder of shards, or a tar is missing or cut short.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_index(folder)
        for shard in self.index.shards:
            _check_size(folder, shard)
        self._members = [(shard, member) for shard in self.index.shards for member in shard.members]
        self._starts = np.cumsum([0] + [member.rows for _, member in self._members]).tolist()
        self._maps: dict[str, NDArray[np.uint8]] = {}
        self._views: dict[int, Rows] = {}

    def __len__(self) -> int:
        return self.index.rows

    def rows(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Tokens and segments, both [n, length] int64, of the given rows [n] in their order."""
        shape = (len(indices), self.index.sequence_length)
        tokens, segments = np.empty(shape, dtype=np.int64), np.empty(shape, dtype=np.int64)
        for place, index in enumerate(indices.tolist()):
            assert 0 <= index < len(self)
            number = bisect.bisect_right(self._starts, index) - 1
            view = self._views.get(number) or self._open(number)
            tokens[place] = view[0][index - self._starts[number]]
            segments[place] = view[1][index - self._starts[number]]
        return tokens, segments

    def _open(self, number: int) -> Rows:
        shard, member = self._members[number]
        if shard.name not in self._maps:
            self._maps[shard.name] = np.memmap(self.folder / shard.name, dtype=np.uint8, mode="r")
        shape = (member.rows, self.index.sequence_length)
        bytes_ = self._maps[shard.name]
        tokens = np.ndarray(shape, self.index.dtype, buffer=bytes_, offset=member.tokens)
        segments = np.ndarray(shape, np.uint16, buffer=bytes_, offset=member.segments)
        if _crc32(tokens, segments) != member.crc32:
            raise UserError(
                f"shard {self.folder / shard.name} is damaged",
                f"rows {self._starts[number]} to {self._starts[number + 1] - 1} are not what was written",
                PREPARE_AGAIN,
            )
        self._views[number] = (tokens, segments)
        return tokens, segments


def read_index(folder: Path) -> Index:
    """The index of a finished folder.

    Raises:
        UserError: there is none, or it is not of this version, or altered.
    """
    try:
        index = Index.model_validate_json((folder / INDEX).read_bytes())
    except FileNotFoundError:
        raise UserError(f"no prepared shards in {folder}", "", "run `megadistill prepare FILE`") from None
    except ValidationError as error:
        reason = f"{error.error_count()} problem(s), first: {error.errors()[0]['msg']}"
        raise UserError(f"{folder / INDEX} cannot be read", reason, PREPARE_AGAIN) from None
    if index.format_version != FORMAT_VERSION:
        found = f"format {index.format_version}, this version reads {FORMAT_VERSION}"
        raise UserError(f"{folder} was prepared by another version", found, "run `megadistill prepare FILE`")
    if index.fingerprint != index.computed_fingerprint():
        raise UserError(f"{folder / INDEX} was altered", "its fingerprint does not match", PREPARE_AGAIN)
    return index


def verify(folder: Path) -> list[str]:
    """Read every byte of a folder again: what is wrong with it, a line per bad file; none if it is sound."""
    problems = []
    try:
        index = read_index(folder)
    except UserError as error:
        return [f"{error.what}{': ' if error.why else ''}{error.why}"]
    for shard in index.shards:
        try:
            _check_size(folder, shard)
        except UserError as error:
            problems.append(f"{error.what}: {error.why}")
        else:
            if sha256_file(folder / shard.name) != shard.sha256:
                problems.append(f"{folder / shard.name}: its sha256 is not the one in the index")
    return problems


def _check_size(folder: Path, shard: Shard) -> None:
    path = folder / shard.name
    if not path.is_file():
        raise UserError(f"shard {path} is missing", f"{folder / INDEX} lists it", PREPARE_AGAIN)
    if (size := path.stat().st_size) != shard.bytes:
        raise UserError(f"shard {path} is damaged", f"{size} bytes, the index says {shard.bytes}", PREPARE_AGAIN)


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _crc32(tokens: NDArray[Any], segments: NDArray[Any]) -> int:
    return zlib.crc32(segments.data, zlib.crc32(tokens.data))


def _located(path: Path, blocks: Iterable[Rows]) -> list[Member]:
    """Where each member's numbers start in a written tar."""
    starts: dict[str, int] = {}
    with open(path, "rb") as handle, tarfile.open(fileobj=handle) as tar:
        for entry in tar:
            handle.seek(entry.offset_data)
            np.lib.format.read_magic(handle)
            np.lib.format.read_array_header_1_0(handle)
            starts[entry.name] = handle.tell()
    keys = sorted({name.partition(".")[0] for name in starts})
    return [
        Member(
            rows=len(tokens),
            tokens=starts[f"{key}.tokens.npy"],
            segments=starts[f"{key}.segments.npy"],
            crc32=_crc32(tokens, segments),
        )
        for key, (tokens, segments) in zip(keys, blocks, strict=True)
    ]
