"""How any rows of a folder of shards are read back at once, and what happens when some of them are damaged."""

from __future__ import annotations

import os
import resource
import tarfile
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from megadistill.core import log
from megadistill.core.errors import UserError
from megadistill.core.files import sha256_file, write_json
from megadistill.core.schema import Strict
from megadistill.data.index import INDEX, PREPARE_AGAIN, Index, read_index, read_table
from megadistill.data.shards import BLOCK, NPY_HEADER, Layout, checksum, member_key, npy
from megadistill.data.staging import Stage, Staging

QUARANTINE = "quarantine"
"""Folder beside the shards with one JSON file for every member that was given up."""

CHECKED_AT_ONCE = 4096
"""Up to so many tars are looked at when a folder is opened; of more, each when its first row is wanted."""

I64 = NDArray[np.int64]


class ReadConfig(Strict):
    """How shards are read; nothing here changes what is trained on sound shards."""

    verify: Literal["off", "lazy", "full"] = "lazy"
    """lazy: a run of rows is checked when the first of them is read; full: every byte before the first row; off:
    nothing but sizes."""
    damaged: Literal["fail", "quarantine"] = "fail"
    """quarantine: rows that are missing or damaged are replaced by one separator without a target, and noted in
    `quarantine/` beside the shards, so that they stay replaced when the run goes on."""
    quarantine_rows: int = Field(10_000, ge=0)
    """Of one corpus; with more, reading fails after all."""
    staging: Staging | None = None
    """Copies on a local disk, for shards on a shared file system or in an object store."""


class _Opened(NamedTuple):
    """The rows of one mapped tar: whole members [members, rows, length], and the last one [rows, length]."""

    data: NDArray[np.uint8]
    tokens: NDArray[Any]
    segments: NDArray[Any]
    last_tokens: NDArray[Any]
    last_segments: NDArray[Any]


class Shards:
    """Random access to the rows of one folder.

    Args:
        folder: of the index, and of the tars where `stage` does not fetch them.
        read: what is checked, and what becomes of damage.
        stage: brings the tars near.

    Raises:
        UserError: the folder is no finished folder of shards, or a tar is missing or cut short.
    """

    def __init__(self, folder: Path, read: ReadConfig = ReadConfig(), stage: Stage | None = None) -> None:  # noqa: B008
        self.folder, self.read, self.stage = folder, read, stage
        self.index: Index = read_index(folder)
        self.table = read_table(folder, self.index, check=read.verify != "off")
        self.layout = Layout(
            self.index.rows_per_member, self.index.sequence_length, np.dtype(self.index.dtype).itemsize
        )
        self.quarantined_rows = 0
        self._sound = np.zeros(self.index.members, dtype=np.bool_)
        self._given_up = np.zeros(self.index.members, dtype=np.bool_)
        self._opened: OrderedDict[int, _Opened] = OrderedDict()
        self._most_opened = max(64, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
        if read.damaged == "quarantine":
            self._recall()
        if stage is None and self.index.shards <= CHECKED_AT_ONCE:
            for shard in range(self.index.shards):
                if (problem := self._size_problem(shard)) is not None:
                    self._give_up(shard, None, *problem)
        if read.verify == "full" and stage is None:
            for name, what, why in verify_shards(folder, self.index):
                self._give_up(name, None, what, why)

    def __len__(self) -> int:
        return self.index.rows

    def rows(self, indices: I64) -> tuple[NDArray[Any], NDArray[np.uint16]]:
        """Tokens (uint16 or uint32, as stored) and segments, both [n, length], of the given rows [n] in their order.

        Raises:
            UserError: a row is missing or damaged, and is not to be quarantined.
        """
        shape = (len(indices), self.index.sequence_length)
        tokens, segments = np.empty(shape, dtype=self.index.dtype), np.empty(shape, dtype=np.uint16)
        shards = self.shards_of(indices)
        turn = np.argsort(shards, kind="stable")
        cuts = np.flatnonzero(np.diff(shards[turn])) + 1
        for places in np.split(turn, cuts):
            if places.size:
                shard = int(shards[places[0]])
                local = indices[places] - self.table.first_row[shard]
                self._gather(shard, local, places, tokens, segments)
        return tokens, segments

    def shards_of(self, indices: I64) -> I64:
        """Which shard holds each row [n]."""
        assert indices.size == 0 or (indices.min() >= 0 and indices.max() < len(self))
        return np.searchsorted(self.table.first_row, indices, side="right") - 1

    def name(self, shard: int) -> str:
        return self.index.name(int(self.table.task[shard]), int(self.table.part[shard]))

    def fetch(self, shard: int) -> Path:
        """Where a shard's tar is, brought near first if need be."""
        if self.stage is None:
            return self.folder / self.name(shard)
        return self.stage.path(self.name(shard), int(self.table.bytes[shard]), self.table.sha256[shard].tobytes())

    # ------------------------------------------------------------------ reading

    def _gather(self, shard: int, local: I64, places: I64, tokens: NDArray[Any], segments: NDArray[Any]) -> None:
        member, row = np.divmod(local, self.index.rows_per_member)
        first = int(self.table.first_member[shard])
        opened = self._open(shard)
        for number in np.unique(member).tolist():
            if opened is not None and not self._sound[first + number] and not self._given_up[first + number]:
                self._check(shard, number, opened)
        lost = self._given_up[first + member]
        if lost.any():
            self._fill(places[lost], tokens, segments)
            member, row, places = member[~lost], row[~lost], places[~lost]
        if opened is None or not places.size:
            return
        whole = member < len(opened.tokens)
        if whole.all():
            tokens[places] = opened.tokens[member, row]
            segments[places] = opened.segments[member, row]
            return
        tokens[places[whole]] = opened.tokens[member[whole], row[whole]]
        segments[places[whole]] = opened.segments[member[whole], row[whole]]
        tokens[places[~whole]] = opened.last_tokens[row[~whole]]
        segments[places[~whole]] = opened.last_segments[row[~whole]]

    def _open(self, shard: int) -> _Opened | None:
        """A shard's rows, mapped; None if the whole shard is given up."""
        if (found := self._opened.get(shard)) is not None:
            self._opened.move_to_end(shard)
            return found
        first, last = self.table.first_member[shard : shard + 2].tolist()
        if self._given_up[first:last].all():
            return None
        try:
            data = np.memmap(self.fetch(shard), dtype=np.uint8, mode="r")
            problem = self._size_problem(shard, data.size)
        except FileNotFoundError:
            problem = (f"shard {self.folder / self.name(shard)} is missing", f"{self.folder / INDEX} lists it")
        except UserError as error:
            if self.read.damaged == "fail":
                raise
            problem = (error.what, error.why)
        if problem is not None:
            self._give_up(shard, None, *problem)
            return None
        opened = self._opened[shard] = self._views(shard, data)
        if len(self._opened) > self._most_opened:
            self._opened.popitem(last=False)
        return opened

    def _views(self, shard: int, data: NDArray[np.uint8]) -> _Opened:
        rows = int(self.table.first_row[shard + 1] - self.table.first_row[shard])
        whole, rest = divmod(rows, self.index.rows_per_member)
        length, stride = self.index.sequence_length, self.layout.stride

        def view(dtype: np.dtype[Any], offset: int, members: int, rows: int) -> NDArray[Any]:
            shape, strides = (members, rows, length), (stride, length * dtype.itemsize, dtype.itemsize)
            return np.ndarray(shape, dtype, buffer=data.data, offset=offset if members and rows else 0, strides=strides)

        kind, small = np.dtype(self.index.dtype), np.dtype(np.uint16)
        per = self.index.rows_per_member
        return _Opened(
            data,
            view(kind, self.layout.tokens(0, per), whole, per),
            view(small, self.layout.segments(0), whole, per),
            view(kind, self.layout.tokens(whole, rest), 1, rest)[0],
            view(small, self.layout.segments(whole), 1, rest)[0],
        )

    # ------------------------------------------------------------------ damage

    def _check(self, shard: int, member: int, opened: _Opened) -> None:
        """Check a member once."""
        number = int(self.table.first_member[shard]) + member
        if self.read.verify == "off":
            self._sound[number] = True
            return
        whole = member < len(opened.tokens)
        tokens = opened.tokens[member] if whole else opened.last_tokens
        segments = opened.segments[member] if whole else opened.last_segments
        start = self.layout.tokens(member, len(tokens)) - BLOCK - NPY_HEADER
        key = member_key(int(self.table.task[shard]), self._row_in_task(shard) + member * self.index.rows_per_member)
        path = self.folder / self.name(shard)
        wanted = npy(tokens[:0])[:8], f"{key}.tokens.npy", NPY_HEADER + tokens.nbytes
        try:
            entry = tarfile.TarInfo.frombuf(opened.data[start : start + BLOCK].tobytes(), "utf-8", "strict")
            found = opened.data[start + BLOCK : start + BLOCK + 8].tobytes(), entry.name, entry.size
            header = opened.data[start + BLOCK : start + BLOCK + NPY_HEADER].tobytes()
            same = found == wanted and header == npy(tokens)[:NPY_HEADER]
            there = f"member {entry.name} of {entry.size:,} bytes, {_described(header)}"
        except tarfile.HeaderError as error:
            same, there = False, f"no member ({error})"
        if not same:
            why = f"at byte {start:,} the index expects {wanted[1]} of {wanted[2]:,} bytes; there is {there}"
            self._give_up(shard, member, f"shard {path} is not the one that its index describes", why)
        elif checksum(tokens, segments) != int(self.table.checksum[number]):
            first = int(self.table.first_row[shard]) + member * self.index.rows_per_member
            why = f"rows {first} to {first + len(tokens) - 1} are not what was written"
            self._give_up(shard, member, f"shard {path} is damaged", why)
        else:
            self._sound[number] = True

    def _row_in_task(self, shard: int) -> int:
        """Number of a shard's first row among those of its task."""
        before = shard - int(self.table.part[shard])
        return int(self.table.first_row[shard] - self.table.first_row[before])

    def _size_problem(self, shard: int, size: int | None = None) -> tuple[str, str] | None:
        path, wanted = self.folder / self.name(shard), int(self.table.bytes[shard])
        if size is None:
            if not path.is_file():
                return f"shard {path} is missing", f"{self.folder / INDEX} lists it"
            size = path.stat().st_size
        return None if size == wanted else (f"shard {path} is damaged", f"{size} bytes, the index says {wanted}")

    def _give_up(self, shard: int, member: int | None, what: str, why: str) -> None:
        """Fail, or quarantine a member, or all members of a shard."""
        if self.read.damaged == "fail":
            raise UserError(what, why, PREPARE_AGAIN)
        start, end = self.table.first_member[shard : shard + 2].tolist()
        members = range(end - start) if member is None else [member]
        for number in members:
            self._mark(shard, number)
            note = {"shard": self.name(shard), "member": number, "what": what, "why": why}
            path = self.folder / QUARANTINE / f"{shard:07d}-{number:06d}.json"
            try:
                if not path.exists():
                    write_json(path, note)
            except OSError as error:
                raise UserError(f"{what}, and cannot be quarantined", f"{why}; {error}", PREPARE_AGAIN) from None
        log.get().warning(f"quarantined: {what}: {why}; {self.quarantined_rows:,} row(s) so far")
        if self.quarantined_rows > self.read.quarantine_rows:
            allowed = f"data.read.quarantine_rows allows {self.read.quarantine_rows:,}; the last: {what}: {why}"
            raise UserError(f"{self.quarantined_rows:,} damaged rows in {self.folder}", allowed, PREPARE_AGAIN)

    def _mark(self, shard: int, member: int) -> None:
        number = int(self.table.first_member[shard]) + member
        if not self._given_up[number]:
            self._given_up[number] = True
            rows = int(self.table.first_row[shard + 1] - self.table.first_row[shard])
            self.quarantined_rows += min(self.index.rows_per_member, rows - member * self.index.rows_per_member)

    def _recall(self) -> None:
        """What was given up before stays given up, or a run that goes on would not see the same rows."""
        for path in sorted((self.folder / QUARANTINE).glob("*.json")):
            shard, _, member = path.stem.partition("-")
            self._mark(int(shard), int(member))

    def _fill(self, places: I64, tokens: NDArray[Any], segments: NDArray[Any]) -> None:
        ids = self.index.special_ids
        pad = next((i for i in (ids.get("pad"), ids.get("sep")) if i is not None), 0)
        tokens[places], segments[places] = pad, 0
        tokens[places, 0] = next((i for i in (ids.get("cls"), ids.get("sep")) if i is not None), pad)
        segments[places, 0] = 1


def verify(folder: Path) -> list[str]:
    """Read every byte of a folder again: what is wrong with it, a line per bad file; none if it is sound."""
    try:
        index = read_index(folder)
        return [f"{what}: {why}" for _, what, why in verify_shards(folder, index)]
    except UserError as error:
        return [f"{error.what}{': ' if error.why else ''}{error.why}"]


def verify_shards(folder: Path, index: Index) -> list[tuple[int, str, str]]:
    """(shard, what, why) of every tar that is missing or not what was written."""
    table = read_table(folder, index)

    def problem(shard: int) -> tuple[int, str, str] | None:
        path = folder / index.name(int(table.task[shard]), int(table.part[shard]))
        if not path.is_file():
            return shard, f"shard {path} is missing", f"{folder / INDEX} lists it"
        if sha256_file(path) != table.sha256[shard].tobytes().hex():
            return shard, f"shard {path} is damaged", "its sha256 is not the one in the index"
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter's lock
        return [found for found in pool.map(problem, range(index.shards)) if found is not None]


def _described(header: bytes) -> str:
    """The dtype and shape that a .npy header declares."""
    text = header[10:].split(b"}")[0].decode("latin1").strip(" {,")
    return text if header[:6] == b"\x93NUMPY" else "no .npy"
