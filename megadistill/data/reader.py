"""How any rows of a folder of shards are read back at once, and what happens when some of them are damaged."""

from __future__ import annotations

import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from megadistill.core import log
from megadistill.core.errors import UserError
from megadistill.core.files import sha256_file
from megadistill.core.schema import Strict
from megadistill.data.index import INDEX, PREPARE_AGAIN, Damage, Index, Table, read_index, read_table
from megadistill.data.shards import BLOCK, NPY_HEADER, Layout, checksum, member_key, npy_header
from megadistill.data.span import Span
from megadistill.data.staging import Stage, Staging

CHECKED_AT_ONCE = 4096
"""Up to so many tars are looked at when a folder is opened; of more, each when its first row is wanted."""

I64 = NDArray[np.int64]
Rows = tuple[NDArray[Any], NDArray[np.uint16]]

_UNKNOWN, _SOUND, _GIVEN_UP = range(3)
"""What is known of a member."""


class ReadConfig(Strict):
    """How shards are read; nothing here changes what is trained on sound shards."""

    verify: Literal["off", "lazy", "full"] = "lazy"
    """lazy: a run of rows is checked when the first of them is read; full: every byte before the first row; off:
    nothing but sizes. Copies that `staging` fetches are always checked whole."""
    damaged: Literal["fail", "quarantine"] = "fail"
    """quarantine: rows that are missing or damaged are replaced by one separator without a target, and written into
    the run's journal with the next checkpoint, so that they stay replaced when the run goes on."""
    quarantine_rows: int = Field(10_000, ge=0)
    """Of one corpus; with more, reading fails after all."""
    staging: Staging | None = None
    """Copies on a local disk, for shards on a shared file system or in an object store."""


class Lost(NamedTuple):
    """Rows [start, stop) of a folder, all in one shard, that were given up as damaged."""

    shard: str
    start: int
    stop: int


class Shards:
    """Random access to the rows of one folder, by one thread; another may `fetch`.

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
        self.table: Table = read_table(folder, self.index, check=read.verify != "off")
        itemsize = np.dtype(self.index.dtype).itemsize
        self.layout = Layout(self.index.rows_per_member, self.index.sequence_length, itemsize)
        self.quarantined_rows = 0
        self._state = np.full(self.index.members, _UNKNOWN, dtype=np.uint8)
        length = self.index.sequence_length
        self._span = Span(self.table.bytes, blank=length * max(itemsize, 2))
        self._tokens, self._segments = (
            self._span.records(length * itemsize, itemsize),
            self._span.records(length * 2, 2),
        )
        if stage is None and self.index.shards <= CHECKED_AT_ONCE:
            for shard in range(self.index.shards):
                if (damage := _wrong_size(self.path(shard), int(self.table.bytes[shard]))) is not None:
                    self._give_up(self._members(shard), damage)
        if stage is None and read.verify == "full":
            for shard, damage in damaged_shards(folder, self.index):
                self._give_up(self._members(shard), damage)

    def __len__(self) -> int:
        return self.index.rows

    def rows(self, indices: I64) -> Rows:
        """Tokens (uint16 or uint32, as stored) and segments, both [n, length], of the given rows [n] in their order.

        Raises:
            UserError: a row is missing or damaged, and is not to be quarantined.
        """
        shards = self.shards_of(indices)
        member, row = np.divmod(indices - self.table.first_row[shards], self.layout.rows)
        numbers = self.table.first_member[shards] + member
        for shard in self._span.absent(shards).tolist():
            self._map(shard)
        for number in np.unique(numbers[self._state[numbers] == _UNKNOWN]).tolist():
            self._examine(number)
        height = np.minimum(self.table.first_row[shards + 1] - indices + row, self.layout.rows)
        token_at, segment_at = (at + self._span.starts[shards] for at in self.layout.row(member, row, height))
        lost = self._state[numbers] == _GIVEN_UP
        if lost.any():
            token_at[lost] = segment_at[lost] = 0  # which reads as zeros, and is there
        shape = (len(indices), self.index.sequence_length)
        tokens = self._tokens[token_at // self.layout.itemsize].view(self.index.dtype).reshape(shape)
        segments = self._segments[segment_at // 2].view(np.uint16).reshape(shape)
        if lost.any():
            tokens[lost], segments[lost] = self.replacement()
        self._let_go()
        return tokens, segments

    def shards_of(self, indices: I64) -> I64:
        """Which shard holds each row [n]."""
        assert indices.size == 0 or (indices.min() >= 0 and indices.max() < len(self))
        return np.searchsorted(self.table.first_row, indices, side="right") - 1

    def name(self, shard: int) -> str:
        return self.index.name(int(self.table.task[shard]), int(self.table.part[shard]))

    def path(self, shard: int) -> Path:
        """Where a shard's tar is read."""
        return (self.folder if self.stage is None else self.stage.folder) / self.name(shard)

    def fetch(self, shard: int) -> None:
        """Bring a shard's tar near, if it has to be; one that is mapped can be read, even if it was removed."""
        if self.stage is None:
            return
        if self._span.mapped[shard]:
            self.stage.used(self.name(shard))
        else:
            sha256 = self.table.sha256[shard].tobytes()
            self.stage.fetch(self.name(shard), int(self.table.bytes[shard]), sha256)

    # ------------------------------------------------------------------ quarantine

    def lost(self) -> list[Lost]:
        """Everything that was given up so far, in order; neighbours in a shard are one."""
        found: list[Lost] = []
        for number in np.flatnonzero(self._state == _GIVEN_UP).tolist():
            shard, start, stop = self._extent(number)
            if found and found[-1].stop == start and found[-1].shard == self.name(shard):
                start = found.pop().start
            found.append(Lost(self.name(shard), start, stop))
        return found

    def lose(self, start: int, stop: int) -> None:
        """Give up rows [start, stop) that an earlier attempt or another rank has found damaged, whatever they are now.

        Raises:
            UserError: that is more than may be quarantined.
        """
        last = np.array([start, stop - 1], dtype=np.int64)
        shards = self.shards_of(last)
        members = self.table.first_member[shards] + (last - self.table.first_row[shards]) // self.layout.rows
        self._mark(range(int(members[0]), int(members[1]) + 1))

    def _give_up(self, members: range, damage: Damage) -> None:
        """Fail, or quarantine."""
        if self.read.damaged == "fail":
            raise damage
        before = self.quarantined_rows
        self._mark(members)
        if self.quarantined_rows > before:
            log.get().warning(f"quarantined: {damage.what}: {damage.why}; {self.quarantined_rows:,} row(s) so far")

    def _mark(self, members: range) -> None:
        for number in members:
            if self._state[number] != _GIVEN_UP:
                self._state[number] = _GIVEN_UP
                _, start, stop = self._extent(number)
                self.quarantined_rows += stop - start
        if self.quarantined_rows > self.read.quarantine_rows:
            raise UserError(
                f"{self.quarantined_rows:,} damaged rows in {self.folder}",
                f"data.read.quarantine_rows allows {self.read.quarantine_rows:,}; the log names them",
                PREPARE_AGAIN,
            )

    def replacement(self) -> Rows:
        """Tokens and segments [length] of what stands for a row that was given up: one separator and padding."""
        ids, length = self.index.special_ids, self.index.sequence_length
        pad = next((i for i in (ids.get("pad"), ids.get("sep")) if i is not None), 0)
        tokens, segments = np.full(length, pad, dtype=self.index.dtype), np.zeros(length, dtype=np.uint16)
        tokens[0] = next((i for i in (ids.get("cls"), ids.get("sep")) if i is not None), pad)
        segments[0] = 1
        return tokens, segments

    # ------------------------------------------------------------------ where things are, and whether they are sound

    def _members(self, shard: int) -> range:
        return range(*self.table.first_member[shard : shard + 2].tolist())

    def _extent(self, number: int) -> tuple[int, int, int]:
        """(shard, first row, row behind the last) of a member."""
        shard = int(np.searchsorted(self.table.first_member, number, side="right")) - 1
        first, end = self.table.first_row[shard : shard + 2].tolist()
        start = first + (number - int(self.table.first_member[shard])) * self.layout.rows
        return shard, start, min(start + self.layout.rows, end)

    def _map(self, shard: int) -> None:
        """Have a shard's tar near and mapped, or give it up."""
        members = self._members(shard)
        if all(self._state[number] == _GIVEN_UP for number in members):
            return
        try:
            self.fetch(shard)
            if (damage := _wrong_size(self.path(shard), int(self.table.bytes[shard]))) is not None:
                raise damage
            self._span.map(shard, self.path(shard))
        except Damage as damage:
            self._give_up(members, damage)

    def _let_go(self) -> None:
        """Of copies that were removed near by, map none any more."""
        if self.stage is not None and self.stage.changed():
            for shard in np.flatnonzero(self._span.mapped).tolist():
                if not self._span.is_mapped(shard, self.path(shard)):
                    self._span.drop(shard)

    def _examine(self, number: int) -> None:
        """Check a member once, as `read.verify` says."""
        shard, start, stop = self._extent(number)
        problem = "" if self.read.verify == "off" else self._problem(number, shard, stop - start)
        if problem:
            what = f"shard {self.path(shard)} is damaged"
            fix = PREPARE_AGAIN if self.stage is None else "remove this copy: it is then fetched again"
            self._give_up(range(number, number + 1), Damage(what, f"rows {start} to {stop - 1}: {problem}", fix))
        else:
            self._state[number] = _SOUND

    def _problem(self, number: int, shard: int, rows: int) -> str:
        """What is wrong with a member of so many rows."""
        data = self._span.bytes_of(shard)
        member = number - int(self.table.first_member[shard])
        token_at, segment_at = self.layout.row(member, 0, rows)
        shape = (rows, self.index.sequence_length)
        tokens = np.ndarray(shape, self.index.dtype, buffer=data, offset=token_at)
        segments = np.ndarray(shape, np.uint16, buffer=data, offset=segment_at)
        header = data[token_at - NPY_HEADER : token_at].tobytes()
        same = header == npy_header(*shape, self.index.dtype)
        if same and checksum(tokens, segments) == self.table.checksum[number]:
            return ""
        key = member_key(int(self.table.task[shard]), self._row_in_task(shard) + member * self.layout.rows)
        wanted, at = (f"{key}.tokens.npy", NPY_HEADER + tokens.nbytes), token_at - NPY_HEADER - BLOCK
        expected = f"the index expects {wanted[0]} of {wanted[1]:,} bytes at byte {at:,}; there is"
        try:
            entry = tarfile.TarInfo.frombuf(data[at : at + BLOCK].tobytes(), "utf-8", "strict")
        except tarfile.HeaderError as error:
            return f"{expected} no member ({error})"
        if not same or (entry.name, entry.size) != wanted:
            return f"{expected} {entry.name} of {entry.size:,} bytes, {_described(header)}"
        return "they are not what was written"

    def _row_in_task(self, shard: int) -> int:
        """Number of a shard's first row among those of its task."""
        before = shard - int(self.table.part[shard])
        return int(self.table.first_row[shard] - self.table.first_row[before])


def verify(folder: Path) -> list[str]:
    """Read every byte of a folder again: what is wrong with it, a line per bad file; none if it is sound."""
    try:
        return [f"{damage.what}: {damage.why}" for _, damage in damaged_shards(folder, read_index(folder))]
    except UserError as error:
        return [f"{error.what}{': ' if error.why else ''}{error.why}"]


def damaged_shards(folder: Path, index: Index) -> list[tuple[int, Damage]]:
    """Every tar that is missing or not what was written."""
    table = read_table(folder, index)

    def problem(shard: int) -> tuple[int, Damage] | None:
        path = folder / index.name(int(table.task[shard]), int(table.part[shard]))
        if not path.is_file():
            return shard, _missing(path)
        if sha256_file(path) != table.sha256[shard].tobytes().hex():
            return shard, Damage(f"shard {path} is damaged", "its sha256 is not the one in the index", PREPARE_AGAIN)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing releases the interpreter's lock
        return [found for found in pool.map(problem, range(index.shards)) if found is not None]


def _wrong_size(path: Path, size: int) -> Damage | None:
    if not path.is_file():
        return _missing(path)
    found = path.stat().st_size
    why = f"{found} bytes, the index says {size}"
    return None if found == size else Damage(f"shard {path} is damaged", why, PREPARE_AGAIN)


def _missing(path: Path) -> Damage:
    return Damage(f"shard {path} is missing", f"{INDEX} lists it", PREPARE_AGAIN)


def _described(header: bytes) -> str:
    """The dtype and shape that a .npy header declares."""
    text = header[10:].split(b"}")[0].decode("latin1").strip(" {,")
    return text if header[:6] == b"\x93NUMPY" else "no .npy"
