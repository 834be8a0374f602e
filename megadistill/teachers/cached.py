"""A teacher that has answered already: `prepare` asks it once about every row, and training reads its answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from megadistill.core import log
from megadistill.core.dist import best_device
from megadistill.core.errors import UserError
from megadistill.core.files import fsync_directory, sha256_file, sha256_json
from megadistill.core.types import Batch, Dims, HeadFunction, Kept, Needs, Signals
from megadistill.data import index as shards
from megadistill.data.config import DataConfig
from megadistill.data.hashing import uniform
from megadistill.data.order import Places
from megadistill.data.stream import Part
from megadistill.data.tokenization import load_tokenizer
from megadistill.kernels.chunks import chunks, fp32_logits
from megadistill.models.signals import LanguageModel
from megadistill.teachers.answers import (
    AGAIN,
    INDEX,
    Answers,
    Index,
    Keep,
    block_files,
    chosen,
    read_back,
    read_index,
    row_keys,
    write_block,
    write_index,
)
from megadistill.teachers.base import Source, Teacher
from megadistill.teachers.ensemble import EnsembleTeacher
from megadistill.teachers.guard import guard
from megadistill.teachers.online import OnlineTeacher

BLOCK_ROWS = 1024
BATCH_ROWS = 32
"""Rows that the teacher is asked about at once."""


class CachedTeacher(Teacher):
    """Another teacher's distributions at every attended token, a few entries of each. A step then costs no teacher at
    all; what is left for objectives is `soft_ce` at one temperature.

    `megadistill prepare` makes the answers, in blocks, so that killed it goes on, and several machines may share the
    work (`--share`). They are found by the content of a row: order, mixture, number of ranks and the run's seed may
    change. Masked rows are found again if their masks are drawn again: set `data.targets.maskings`, and
    `data.targets.seed` if the run's seed is to change.
    """

    kind: Literal["cached"]
    dir: Path
    """Where `prepare` writes the answers and training reads them."""
    of: OnlineTeacher | EnsembleTeacher = Field(discriminator="kind")
    """Who answers; proves itself (`of.guard`) before it does."""
    keep: Keep = Keep()
    temperature: float = Field(2.0, gt=0)
    """At which distributions are taken: `soft_ce` must have the same."""

    def fetch(self) -> None:
        self.of.fetch()

    def paths(self) -> list[str]:
        return self.of.paths()

    def cannot(self, needs: Needs) -> str:
        others = needs.temperatures - {self.temperature}
        if others:
            told = ", ".join(f"{t:g}" for t in sorted(others))
            return f"its distributions are of temperature {self.temperature:g}, not {told}; set teacher.temperature"
        missing = {
            "hidden states": bool(needs.teacher_hidden),
            "attention": bool(needs.teacher_attention),
            "a second answer": needs.again,
            "logits": needs.logits,
            "the probability of every entry": needs.whole,
        }
        wanted = [name for name, is_needed in missing.items() if is_needed]
        if wanted:
            return f"it has kept no {', no '.join(wanted)}; use teacher: {self.of.kind} (which costs its forward pass)"
        return ""

    def cannot_read(self, data: DataConfig) -> str:
        if data.targets.num_drawings is None:
            return (
                f"data.targets: {data.targets.kind} draws new targets in every epoch, which no answers could be kept "
                "for; set data.targets.maskings to how many different ones a row has"
            )
        return ""

    def prepare(self, data: DataConfig, seed: int, say: Callable[[str], None], share: tuple[int, int]) -> None:
        _Making(self, data, seed, say).run(share)

    def origin(self) -> LanguageModel | None:
        return self.of.build(torch.device("cpu")).models[0]

    def check(self, data: DataConfig) -> None:
        """Raises:
        UserError: no answers, or others than of this teacher, text, tokenizer and keep.
        """
        index = read_index(self.dir)
        wanted = self.facts(data)
        stale = [
            f"{name}: {index.facts.get(name)!r} there, {value!r} here"
            for name, value in wanted.items()
            if index.facts.get(name) != value
        ]
        for path, (before, digest) in zip(self.paths(), index.weights.items(), strict=False):
            now = weights_sha256(path)
            if now and digest and now != digest:
                stale.append(f"the weights of {path} are not those that answered")
            elif not (now and digest) and path != before:
                stale.append(f"{before} answered, and teacher.of is {path}")
            elif digest and not now:
                log.get().warning(f"not checked that {path} gave the answers in {self.dir}: it is not here")
        if stale:
            raise UserError(f"the teacher's answers in {self.dir} are stale", "\n  ".join(stale), AGAIN)

    def build(self, device: torch.device) -> CachedSource:
        return CachedSource(Answers(self.dir), device)

    def facts(self, data: DataConfig) -> dict[str, Any]:
        """What decides the answers besides the weights, in words that a message can tell."""
        return {
            # without its paths: folders may move, weights are compared by their hashes
            "teacher": self.of.model_dump(
                mode="json", exclude={"guard": True, "path": True, "members": {"__all__": {"path", "guard"}}}
            ),
            "tokenizer": load_tokenizer(data.tokenizer).fingerprint,
            "corpora": {
                corpus.name: shards.read_index(data.dir / corpus.name / "train").fingerprint for corpus in data.corpora
            },
            "targets": data.targets.model_dump(mode="json"),
            "attention": data.attention,
            "keep": self.keep.model_dump(mode="json"),
            "temperature": self.temperature,
        }


class CachedSource:
    """The built teacher: it has no model."""

    models: tuple[LanguageModel, ...] = ()

    def __init__(self, answers: Answers, device: torch.device) -> None:
        self.answers, self.device = answers, device

    @property
    def dims(self) -> Dims:
        return Dims(layers=0, hidden=0, vocabulary=self.answers.index.vocabulary)

    def signals(self, batch: Batch, needs: Needs) -> Signals:
        """Raises:
        UserError: a row that the teacher was never asked about.
        """
        places = self.answers.find(row_keys(batch))
        if (places < 0).any():
            raise UserError(
                f"{int((places < 0).sum())} of {len(places)} rows are not in {self.answers.folder}",
                f"such as row {int(batch.home.rows[int(np.argmin(places))])} with the targets that this run gives it",
                "set data.targets.seed to one number for all runs that share the answers, and prepare again; or use "
                f"teacher: {self.answers.index.facts['teacher']['kind']}",
            )
        return Signals(_no_head, kept=lambda rows: self._kept(batch, rows, places))

    def _kept(self, batch: Batch, rows: Tensor, places: NDArray[np.int64]) -> Kept:
        home = batch.home
        known = {id(batch.attended): home.attended, id(batch.targets): home.targets}
        flat = known.get(id(rows), rows).cpu().numpy()  # other rows than these would wait for the device
        row, column = np.divmod(flat, home.mask.shape[1])
        tokens = home.mask.numpy().cumsum(axis=1)[row, column] - 1
        kept = read_back(self.answers.records(places[row], tokens), self.answers.index)
        ids, log_probs = (part.to(self.device, non_blocking=True) for part in (kept.ids, kept.log_probs))
        return Kept(ids, log_probs, kept.ghost, kept.temperature)

    def attach(self, student: LanguageModel) -> None:
        """It needs none."""

    def after_step(self, step: int, student: torch.nn.Module) -> None:
        """It never moves."""

    def save(self, folder: Path) -> None:
        """A reference in the manifest is enough."""

    def load(self, folder: Path) -> None:
        """There is nothing to load."""

    def identity(self) -> dict[str, Any]:
        """The folder and the fingerprint of all answers in it."""
        return {"kind": "cached", "dir": str(self.answers.folder), "sha256": self.answers.index.fingerprint}


class _Making:
    """A folder of answers on its way."""

    def __init__(self, teacher: CachedTeacher, data: DataConfig, seed: int, say: Callable[[str], None]) -> None:
        self.teacher, self.data, self.seed, self.say = teacher, data, seed, say
        self.facts = teacher.facts(data)
        self.weights = {path: weights_sha256(path) for path in teacher.paths()}
        self.vocabulary = load_tokenizer(data.tokenizer).vocabulary_size
        models = [digest or path for path, digest in self.weights.items()]
        self.key = sha256_json([self.facts, models, data.targets.seed_for(seed)])
        self.folder = teacher.dir.with_name(f".{teacher.dir.name}.{self.key[:16]}.making")

    def run(self, share: tuple[int, int]) -> None:
        """Make the answers that are not there yet."""
        if (index := self._there()) is not None:
            self.say(f"answers: made already and sound, {_told(index)} in {self.teacher.dir}")
            return
        part = Part(self.data, "train")
        jobs = list(self._jobs(part))
        self.folder.mkdir(parents=True, exist_ok=True)
        left = [n for n in range(share[0], len(jobs), share[1]) if not block_files(self.folder, n)[1].exists()]
        if left:
            source = self._asked(part)
            for done, number in enumerate(left):
                self._block(source, part, number, jobs[number])
                if done % 16 == 15:
                    self.say(f"answers: {done + 1:,} of {len(left):,} blocks of {BLOCK_ROWS:,} rows")
        missing = sum(not block_files(self.folder, n)[1].exists() for n in range(len(jobs)))
        if missing:
            self.say(f"answers: {missing:,} of {len(jobs):,} blocks to do; other shares have them")
            return
        keep, t = self.teacher.keep, self.teacher.temperature
        facts = {**self.facts, "key": self.key}
        index = write_index(self.folder, len(jobs), facts, self.weights, self.vocabulary, keep, t)
        if self.teacher.dir.exists():
            shutil.rmtree(self.teacher.dir)
        self.folder.rename(self.teacher.dir)
        fsync_directory(self.teacher.dir.parent)
        self.say(f"answers: {_told(index)} in {self.teacher.dir}")

    def _there(self) -> Index | None:
        """The index of the finished folder, where it is what is asked for."""
        folder = self.teacher.dir
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
        device = best_device()
        source = self.teacher.of.build(device)
        for model in source.models:
            model.to(device).attends = self.data.attention
        if self.teacher.of.guard is not None:
            rows = np.arange(min(8, int(part.starts[1])), dtype=np.int64)
            trial = part.batch(Places(np.zeros_like(rows), np.zeros_like(rows), rows), self.seed, "targets")
            counts = part.vocabulary.counts
            guard(self.teacher.of.guard, source, None, trial.to(device), self.vocabulary, counts)
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
            records.append(self._records(source, batch.to(best_device()), u))
        write_block(self.folder, number, np.concatenate(records), np.concatenate(keys), tokens)

    def _records(self, source: Source, batch: Batch, u: Tensor) -> NDArray[Any]:
        signals = source.signals(batch, Needs(teacher=True))
        answers = signals.members or ((1.0, signals),)
        heads = [(weight, *answer.head(lambda *head: head, batch.attended)) for weight, answer in answers]
        size, t = self.vocabulary, self.teacher.temperature
        records = []
        for part in chunks(len(batch.attended), size, num_buffers=6):
            p = torch.zeros((), device=batch.ids.device)
            for share, hidden, weight, bias in heads:
                logits = fp32_logits(hidden[part], weight[:size], None if bias is None else bias[:size])
                p = p + share * (logits / t).softmax(-1)
            records.append(chosen(p, self.teacher.keep, u[part]))
        return np.concatenate(records)


def weights_sha256(path: str) -> str:
    """Over the files of weights in a model's folder; empty where there is no such folder."""
    files = sorted(file for pattern in ("*.safetensors", "*.bin") for file in Path(path).glob(pattern))
    return sha256_json([[file.name, sha256_file(file)] for file in files]) if files else ""


def _told(index: Index) -> str:
    return f"{index.tokens:,} tokens, {index.bytes / max(index.tokens, 1):.1f} bytes each"


def _no_head(fn: HeadFunction[Any], rows: Tensor, layers: Sequence[int] = (-1,)) -> Any:
    raise UserError(
        "a cached teacher has no vocabulary head", "its answers are all there is", "use teacher: online or ensemble"
    )
