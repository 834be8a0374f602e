"""What a folder of shards holds: a small JSON header, and beside it a binary table of a few bytes a shard.

The table is read through a memory map, so opening a million shards takes no longer than opening one. Where a row
lies inside its tar needs no table at all: every member has as many rows as the header says, but for a tar's last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from megadistill.core.errors import UserError
from megadistill.core.files import atomic_write, sha256_file, sha256_json, write_json
from megadistill.core.schema import Strict

FORMAT_VERSION = 2
INDEX = "index.json"
TABLE = "index.bin"
PREPARE_AGAIN = "run `megadistill prepare FILE`: it checks every byte and makes again what is damaged"


class Damage(UserError):
    """Rows are missing, or not what was written."""


@dataclass(frozen=True)
class Shard:
    """One tar."""

    task: int
    """Number of the task of `prepare` that wrote it."""
    part: int
    """Its number among that task's."""
    rows: int
    size: int
    """Bytes."""
    sha256: bytes
    checksums: NDArray[np.uint64]
    """[members] xxh3 of each member's tokens and segments."""


class Index(Strict):
    """The header."""

    format_version: int
    stem: str
    """What the tars' names begin with."""
    sequence_length: int
    dtype: str
    """Of the tokens: uint16 where the vocabulary allows, else uint32; segments are uint16."""
    tokenizer: str
    """The tokenizer's fingerprint."""
    vocabulary_size: int
    special_ids: dict[str, int | None]
    """pad, cls, sep, mask, unk."""
    rows: int
    shards: int
    members: int
    rows_per_member: int
    bytes: int
    """Of all tars together."""
    table_sha256: str
    fingerprint: str
    """Of everything above: equal for equal rows, wherever they were made."""

    def computed_fingerprint(self) -> str:
        return sha256_json(self.model_dump(exclude={"fingerprint"}))

    def name(self, task: int, part: int) -> str:
        return shard_name(self.stem, task, part)


class Table:
    """The columns of index.bin, mapped: S shards, M members."""

    def __init__(self, path: Path, shards: int, members: int) -> None:
        self.columns = _columns(shards, members)
        data = np.memmap(path, dtype=np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
        offset, made = 0, {}
        for name, (dtype, shape) in self.columns.items():
            made[name] = np.ndarray(shape, dtype, buffer=data.data, offset=offset)
            offset += made[name].nbytes
        self.first_row: NDArray[np.int64] = made["first_row"]
        """[S + 1] number of each shard's first row; last, the number of all rows."""
        self.first_member: NDArray[np.int64] = made["first_member"]
        """[S + 1]"""
        self.checksum: NDArray[np.uint64] = made["checksum"]
        """[M]"""
        self.bytes: NDArray[np.int64] = made["bytes"]
        """[S]"""
        self.sha256: NDArray[np.uint8] = made["sha256"]
        """[S, 32]"""
        self.task: NDArray[np.uint32] = made["task"]
        """[S]"""
        self.part: NDArray[np.uint32] = made["part"]
        """[S]"""


def shard_name(stem: str, task: int, part: int) -> str:
    return f"{stem}-{task:06d}-{part:04d}.tar"


def write_index(
    folder: Path, stem: str, about: dict[str, object], shards: Sequence[Shard], rows_per_member: int
) -> Index:
    """Write table and header of finished shards, the header last: with it the folder can be read.

    Args:
        about: the fields of the header that say how the rows were made.
        shards: sorted by task and part.
    """
    members = [len(shard.checksums) for shard in shards]
    columns = {
        "first_row": np.cumsum([0, *(shard.rows for shard in shards)]),
        "first_member": np.cumsum([0, *members]),
        "checksum": np.concatenate([np.empty(0, np.uint64), *(shard.checksums for shard in shards)]),
        "bytes": [shard.size for shard in shards],
        "sha256": np.frombuffer(b"".join(shard.sha256 for shard in shards), np.uint8),
        "task": [shard.task for shard in shards],
        "part": [shard.part for shard in shards],
    }
    with atomic_write(folder / TABLE, "wb") as handle:
        for name, (dtype, shape) in _columns(len(shards), sum(members)).items():
            handle.write(np.asarray(columns[name], dtype=dtype).reshape(shape).tobytes())
    values = {
        "format_version": FORMAT_VERSION,
        "stem": stem,
        "rows": sum(shard.rows for shard in shards),
        "shards": len(shards),
        "members": sum(members),
        "rows_per_member": rows_per_member,
        "bytes": sum(shard.size for shard in shards),
        "table_sha256": sha256_file(folder / TABLE),
        **about,
    }
    index = Index.model_validate({**values, "fingerprint": ""})
    index = index.model_copy(update={"fingerprint": index.computed_fingerprint()})
    write_json(folder / INDEX, index.model_dump())
    return index


def read_index(folder: Path) -> Index:
    """The header of a finished folder.

    Raises:
        UserError: there is none, or it is not of this version, or altered.
    """
    try:
        text = (folder / INDEX).read_bytes()
        version = _Version.model_validate_json(text).format_version
        if version != FORMAT_VERSION:
            found = f"format {version}, this version reads {FORMAT_VERSION}"
            raise UserError(f"{folder} was prepared by another version", found, "run `megadistill prepare FILE`")
        index = Index.model_validate_json(text)
    except FileNotFoundError:
        raise UserError(f"no prepared shards in {folder}", "", "run `megadistill prepare FILE`") from None
    except ValidationError as error:
        reason = f"{error.error_count()} problem(s), first: {error.errors()[0]['msg']}"
        raise UserError(f"{folder / INDEX} cannot be read", reason, PREPARE_AGAIN) from None
    if index.fingerprint != index.computed_fingerprint():
        raise UserError(f"{folder / INDEX} was altered", "its fingerprint does not match", PREPARE_AGAIN)
    return index


def read_table(folder: Path, index: Index, *, check: bool = True) -> Table:
    """The table of a finished folder.

    Raises:
        UserError: it is missing, not the one that the header names, or contradicts itself.
    """
    path = folder / TABLE
    if not path.is_file():
        raise UserError(f"{path} is missing", f"{folder / INDEX} needs it", PREPARE_AGAIN)
    size = sum(int(np.prod(s)) * np.dtype(d).itemsize for d, s in _columns(index.shards, index.members).values())
    if path.stat().st_size != size or (check and sha256_file(path) != index.table_sha256):
        raise UserError(f"{path} is damaged", f"it is not the table that {INDEX} was written with", PREPARE_AGAIN)
    table = Table(path, index.shards, index.members)
    numbers = table.task.astype(np.int64) << 32 | table.part
    if (twice := np.flatnonzero(np.diff(numbers) <= 0)).size:
        shard = int(twice[0]) + 1
        name = index.name(int(table.task[shard]), int(table.part[shard]))
        raise UserError(f"{path} lists {name} twice, or out of order", "", PREPARE_AGAIN)
    return table


class _Version(BaseModel):
    """All that is asked of a header of any version."""

    format_version: int


def _columns(shards: int, members: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of each column, in their order in the file: wide ones first, so all are aligned."""
    return {
        "first_row": ("<i8", (shards + 1,)),
        "first_member": ("<i8", (shards + 1,)),
        "checksum": ("<u8", (members,)),
        "bytes": ("<i8", (shards,)),
        "sha256": ("u1", (shards, 32)),
        "task": ("<u4", (shards,)),
        "part": ("<u4", (shards,)),
    }
