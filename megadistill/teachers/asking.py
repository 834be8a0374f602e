"""How a teacher is asked about every row of the data once, and what it says is kept."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megadistill.core.dist import best_device
from megadistill.core.errors import UserError
from megadistill.core.files import fsync_directory, locked, sha256_json
from megadistill.core.types import Batch, Needs
from megadistill.data.config import DataConfig
from megadistill.data.hashing import uniform
from megadistill.data.order import Places
from megadistill.data.stream import Part
from megadistill.data.tokenization import load_tokenizer
from megadistill.kernels.chunks import chunks, fp32_logits
from megadistill.teachers.answers import (
    INDEX,
    Index,
    Keep,
    block_files,
    chosen,
    damaged_blocks,
    read_index,
    row_keys,
    write_block,
    write_index,
)
from megadistill.teachers.base import Source, Teacher
from megadistill.teachers.guard import guard

BLOCK_ROWS = 1024
BATCH_ROWS = 32
"""Rows that the teacher is asked about at once."""


class Asking:
    """A folder of answers on its way."""

    def __init__(
        self,
        teacher: Teacher,
        keep: Keep,
        temperature: float,
        facts: dict[str, Any],
        weights: dict[str, str],
        folder: Path,
        data: DataConfig,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        """Args:
        teacher: who is asked.
        facts: all that decides the answers but the weights; kept in the index.
        weights: path of each model -> the sha256 of its files, or empty.
        folder: where the answers come to lie; what was made of other facts is replaced.
        data: prepared.
        seed: of the run, which may decide the targets.
        """
        self.teacher, self.keep, self.temperature = teacher, keep, temperature
        self.facts, self.weights, self.final = facts, weights, folder
        self.data, self.seed, self.say = data, seed, say
        self.device = best_device()
        self.vocabulary = load_tokenizer(data.tokenizer).vocabulary_size
        if keep.kind == "top_k" and keep.entries > self.vocabulary:
            raise UserError(
                f"teacher.keep.entries: {keep.entries} of a vocabulary of {self.vocabulary:,}", "", "keep fewer"
            )
        models = [digest or path for path, digest in weights.items()]
        self.key = sha256_json([facts, models, data.targets.seed_for(seed)])
        self.making = folder.with_name(f".{folder.name}.{self.key[:16]}.making")

    def run(self, share: tuple[int, int]) -> bool:
        """Make the answers that are not there yet, or are damaged.

        Args:
            share: (i, n): only every n-th block, from the i-th on. Whoever ends last finishes the folder.

        Returns:
            whether all are there; else other shares have some to make, or are about to finish.

        Raises:
            UserError: the folder cannot be made, or the teacher does not prove itself.
        """
        first, number = share
        with self._locked(fcntl.LOCK_EX if number == 1 else fcntl.LOCK_SH):
            there = self._there()
            if not (wanted := self._wanted(there)):
                return True
            self._make([n for n in wanted if n % number == first])
            if number == 1:
                self._finish(there, wanted)
                return True
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB) as alone:
            if not alone:
                self.say("answers: other shares are at work; the last of them finishes")
                return False
            there = self._there()
            if not (wanted := self._wanted(there)):
                return True
            if missing := len(self._left(wanted)):
                self.say(f"answers: {missing:,} of {len(wanted):,} blocks to do; other shares have them")
                return False
            self._finish(there, wanted)
            return True

    def _locked(self, kind: int) -> AbstractContextManager[bool]:
        """Only one process finishes the folder; shares work together."""
        path = self.final.with_name(f".{self.final.name}.lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise UserError(f"{self.final} cannot be made", str(error), "set another teacher.dir") from None
        return locked(path, kind)

    @cached_property
    def part(self) -> Part:
        return Part(self.data, "train")

    @cached_property
    def jobs(self) -> list[Places]:
        """The rows of each block but the last: all rows of each corpus with every drawing of their targets."""
        return [
            Places(np.full_like(row, corpus), np.full_like(row, drawing), row)
            for corpus, rows in enumerate(np.diff(self.part.starts).tolist())
            for drawing in range(self.data.targets.num_drawings or 0)
            for start in range(0, rows, BLOCK_ROWS)
            for row in [np.arange(start, min(start + BLOCK_ROWS, rows), dtype=np.int64)]
        ]

    @property
    def blocks(self) -> int:
        """How many: the last one is of the row that stands for damaged ones (`data.read.damaged: quarantine`)."""
        return len(self.jobs) + 1

    def _left(self, numbers: list[int]) -> list[int]:
        """Those of the blocks that are not made."""
        return [n for n in numbers if not block_files(self.making, n)[1].exists()]

    def _make(self, numbers: list[int]) -> None:
        left = self._left(numbers)
        self.making.mkdir(exist_ok=True)
        source = self._asked() if left else None
        for done, number in enumerate(left, 1):
            assert source is not None
            self._block(source, number)
            if done % 16 == 0:
                self.say(f"answers: {done:,} of {len(left):,} blocks of {BLOCK_ROWS:,} rows")

    def _finish(self, there: Index | None, made: list[int]) -> None:
        """What was made becomes the folder, or goes into the one that is there."""
        if there is None:
            index = self._index(self.making, self.blocks)
            if self.final.exists():
                shutil.rmtree(self.final)
            self.making.rename(self.final)
        else:
            for path in (file for number in made for file in reversed(block_files(self.making, number))):
                path.replace(self.final / path.name)  # the second file first: without it a block is not made
            index = self._index(self.final, max(len(there.blocks), max(made) + 1))
            shutil.rmtree(self.making)
        fsync_directory(self.final.parent)
        self.say(f"answers: {_told(index)} in {self.final}")

    def _index(self, folder: Path, blocks: int) -> Index:
        facts = {**self.facts, "key": self.key}
        return write_index(folder, blocks, facts, self.weights, self.vocabulary, self.keep, self.temperature)

    def _wanted(self, there: Index | None) -> list[int]:
        """The blocks that are to be made: all, or those of a finished folder that are damaged."""
        if there is None:
            return list(range(self.blocks))
        wanted = damaged_blocks(self.final, there)
        if wanted:
            self.say(f"answers: making {len(wanted):,} of {len(there.blocks):,} blocks again, damaged in {self.final}")
        if self.data.read.damaged == "quarantine":  # folders made by an earlier version lack the last block
            wanted += range(len(there.blocks), self.blocks)
        if not wanted:
            self.say(f"answers: made already and sound, {_told(there)} in {self.final}")
        return wanted

    def _there(self) -> Index | None:
        """The index of the finished folder, where it is of what is asked for."""
        folder = self.final
        if not folder.exists():
            return None
        if not (folder / INDEX).exists():
            raise UserError(f"{folder} was not made by prepare, and would be replaced", "", "set another teacher.dir")
        try:
            return index if (index := read_index(folder)).facts.get("key") == self.key else None
        except UserError as error:
            self.say(f"answers: making them again: {error.what}")
            return None

    def _asked(self) -> Source:
        """The teacher, after it has proved itself."""
        source = self.teacher.build(self.device)
        for model in source.models:
            model.to(self.device).attends = self.data.attends
        if self.teacher.guard is not None:
            part = self.part
            rows = np.arange(min(8, int(part.starts[1])), dtype=np.int64)
            trial = part.batch(Places(np.zeros_like(rows), np.zeros_like(rows), rows), self.seed, "targets")
            counts = part.vocabulary.counts
            guard(self.teacher.guard, source, None, trial.to(self.device), self.vocabulary, counts)
        return source

    @torch.no_grad()
    def _block(self, source: Source, number: int) -> None:
        records, keys, tokens = [], [], []
        for batch in self._batches(number):
            keys.append(row_keys(batch))
            tokens += batch.mask.sum(1).tolist()
            u = torch.from_numpy(uniform(keys[-1], 0, batch.mask.shape[1]))[batch.mask]
            records.append(self._records(source, batch.to(self.device), u))
        write_block(self.making, number, np.concatenate(records), np.concatenate(keys), tokens)

    def _batches(self, number: int) -> Iterator[Batch]:
        if number == len(self.jobs):
            yield self.part.replacement()
            return
        places = self.jobs[number]
        for start in range(0, len(places.row), BATCH_ROWS):
            here = Places(*(field[start : start + BATCH_ROWS] for field in places))
            yield self.part.batch(here, self.seed, "targets")

    def _records(self, source: Source, batch: Batch, u: Tensor) -> NDArray[Any]:
        """[attended tokens] what is kept of the distributions; `u` decides what is drawn."""
        signals = source.signals(batch, Needs(teacher=True))
        answers = signals.members or ((1.0, signals),)
        heads = [(weight, *answer.head(lambda *head: head, batch.attended)) for weight, answer in answers]
        size, t = self.vocabulary, self.temperature
        records = []
        for part in chunks(len(batch.attended), size, num_buffers=6):
            p = torch.zeros((), device=batch.ids.device)
            for share, hidden, weight, bias in heads:
                logits = fp32_logits(hidden[part], weight[:size], None if bias is None else bias[:size])
                p = p + share * (logits / t).softmax(-1)
            records.append(chosen(p, self.keep, u[part]))
        return np.concatenate(records)


def _told(index: Index) -> str:
    return f"{index.tokens:,} tokens, {index.bytes / max(index.tokens, 1):.1f} bytes each"
