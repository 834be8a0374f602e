"""How a teacher is asked about every row of the data once, and what it says is kept."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megadistill.core.dist import best_device
from megadistill.core.errors import UserError
from megadistill.core.files import fsync_directory, sha256_json
from megadistill.core.types import Batch, Needs
from megadistill.data.config import DataConfig
from megadistill.data.hashing import uniform
from megadistill.data.order import Places
from megadistill.data.stream import Part
from megadistill.data.tokenization import load_tokenizer
from megadistill.kernels.chunks import chunks, fp32_logits
from megadistill.teachers.answers import (
    INDEX,
    Answers,
    Index,
    Keep,
    block_files,
    chosen,
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

    def run(self, share: tuple[int, int]) -> None:
        """Make the answers that are not there yet."""
        if (index := self._there()) is not None:
            self.say(f"answers: made already and sound, {_told(index)} in {self.final}")
            return
        part = Part(self.data, "train")
        jobs = list(self._jobs(part))
        self.making.mkdir(parents=True, exist_ok=True)
        left = [n for n in range(share[0], len(jobs), share[1]) if not block_files(self.making, n)[1].exists()]
        if left:
            source = self._asked(part)
            for done, number in enumerate(left):
                self._block(source, part, number, jobs[number])
                if done % 16 == 15:
                    self.say(f"answers: {done + 1:,} of {len(left):,} blocks of {BLOCK_ROWS:,} rows")
        missing = sum(not block_files(self.making, n)[1].exists() for n in range(len(jobs)))
        if missing:
            self.say(f"answers: {missing:,} of {len(jobs):,} blocks to do; other shares have them")
            return
        facts = {**self.facts, "key": self.key}
        index = write_index(self.making, len(jobs), facts, self.weights, self.vocabulary, self.keep, self.temperature)
        if self.final.exists():
            shutil.rmtree(self.final)
        self.making.rename(self.final)
        fsync_directory(self.final.parent)
        self.say(f"answers: {_told(index)} in {self.final}")

    def _there(self) -> Index | None:
        """The index of the finished folder, where it is what is asked for."""
        folder = self.final
        if not folder.exists():
            return None
        if not (folder / INDEX).exists():
            raise UserError(f"{folder} was not made by prepare, and would be replaced", "", "set another teacher.dir")
        try:
            return index if (index := Answers(folder).index).facts.get("key") == self.key else None
        except UserError as error:
            self.say(f"answers: making them again: {error.what}")
            return None

    def _jobs(self, part: Part) -> Iterator[Places]:
        """The rows of each block: all rows of each corpus with every drawing of their targets."""
        for corpus, rows in enumerate(np.diff(part.starts).tolist()):
            for drawing in range(self.data.targets.num_drawings or 0):
                for start in range(0, rows, BLOCK_ROWS):
                    row = np.arange(start, min(start + BLOCK_ROWS, rows), dtype=np.int64)
                    yield Places(np.full_like(row, corpus), np.full_like(row, drawing), row)

    def _asked(self, part: Part) -> Source:
        """The teacher, after it has proved itself."""
        source = self.teacher.build(self.device)
        for model in source.models:
            model.to(self.device).attends = self.data.attention
        if self.teacher.guard is not None:
            rows = np.arange(min(8, int(part.starts[1])), dtype=np.int64)
            trial = part.batch(Places(np.zeros_like(rows), np.zeros_like(rows), rows), self.seed, "targets")
            counts = part.vocabulary.counts
            guard(self.teacher.guard, source, None, trial.to(self.device), self.vocabulary, counts)
        return source

    @torch.no_grad()
    def _block(self, source: Source, part: Part, number: int, places: Places) -> None:
        records, keys, tokens = [], [], []
        for start in range(0, len(places.row), BATCH_ROWS):
            here = Places(*(field[start : start + BATCH_ROWS] for field in places))
            batch = part.batch(here, self.seed, "targets")
            keys.append(row_keys(batch))
            tokens += batch.mask.sum(1).tolist()
            u = torch.from_numpy(uniform(keys[-1], 0, batch.mask.shape[1]))[batch.mask]
            records.append(self._records(source, batch.to(self.device), u))
        write_block(self.making, number, np.concatenate(records), np.concatenate(keys), tokens)

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
