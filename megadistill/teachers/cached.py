"""A teacher that has answered already: `prepare` asks it once about every row, and training reads its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from megadistill.core import log
from megadistill.core.errors import UserError
from megadistill.core.types import AnswerKind, Batch, Dims, HeadFunction, Kept, Needs, Signals
from megadistill.data import index as shards
from megadistill.data.config import DataConfig
from megadistill.data.tokenization import load_tokenizer
from megadistill.models.signals import LanguageModel
from megadistill.teachers.answers import AGAIN, Answers, Keep, read_back, read_index, row_keys
from megadistill.teachers.asking import Asking
from megadistill.teachers.base import Source, Teacher
from megadistill.teachers.ensemble import EnsembleTeacher
from megadistill.teachers.online import OnlineTeacher, weights_sha256


class CachedTeacher(Teacher):
    """Another teacher's distributions at every attended token, a few entries of each. A step then costs no teacher at
    all; what is left for objectives is `soft_ce` at one temperature.

    `megadistill prepare` makes the answers, in blocks, so that killed it goes on, and several machines may share the
    work (`--share`). They are found by the content of a row: order, mixture, number of ranks and the run's seed may
    change. Masked rows are found again if their masks are drawn again: set `data.targets.maskings`, and
    `data.targets.seed` if the run's seed is to change.
    """

    kind: Literal["cached"]
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"tokens"})
    answers_first: ClassVar[bool] = True
    dir: Path
    """Where `prepare` writes the answers and training reads them."""
    of: OnlineTeacher | EnsembleTeacher = Field(discriminator="kind")
    """Who answers; proves itself (`of.guard`) before it does."""
    keep: Keep = Keep()
    """Which entries of a distribution are kept."""
    temperature: float = Field(2.0, gt=0)
    """At which distributions are taken: `soft_ce` must have the same."""

    def stands_for(self, rows: Sequence[str]) -> CachedTeacher:
        return self.model_copy(update={"of": self.of.stands_for(rows)})

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
            "answers at padding": needs.padding,
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
        return self.of.cannot_read(data)

    def prepare(self, data: DataConfig, seed: int, say: Callable[[str], None], share: tuple[int, int]) -> bool:
        weights = {path: weights_sha256(path) for path in self.paths()}
        asking = Asking(self.of, self.keep, self.temperature, self.facts(data), weights, self.dir, data, seed, say)
        return asking.run(share)

    def origin(self, empty: bool = False) -> LanguageModel | None:
        return (self.of.empty if empty else self.of.build)(torch.device("cpu")).models[0]

    def stored(self) -> LanguageModel:
        return self.of.stored()

    def check(self, data: DataConfig) -> None:
        """Raises:
        UserError: no answers, or others than of this teacher, text, tokenizer and keep.
        """
        index = read_index(self.dir)
        wanted = self.facts(data)
        there = index.facts | {"teacher": _who(index.facts.get("teacher") or {})}
        stale = [
            f"{name}: {there.get(name)!r} there, {value!r} here"
            for name, value in wanted.items()
            if there.get(name) != value
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

    def empty(self, device: torch.device) -> ShapesOfAnswers:
        return ShapesOfAnswers(self.keep, self.temperature, self.of.empty(device).dims.vocabulary)

    def build(self, device: torch.device) -> CachedSource:
        return CachedSource(Answers(self.dir), device)

    def asked(self, device: torch.device) -> Source:
        return self.of.build(torch.device("cpu"))  # dtype auto: nothing is rounded

    def facts(self, data: DataConfig) -> dict[str, Any]:
        """What decides the answers besides the weights, in words that a message can tell."""
        return {
            "teacher": _who(self.of.model_dump(mode="json")),
            "tokenizer": load_tokenizer(data.tokenizer).fingerprint,
            "corpora": {
                corpus.name: shards.read_index(data.dir / corpus.name / "train").fingerprint for corpus in data.corpora
            },
            "targets": data.targets.model_dump(mode="json"),
            "attention": data.attends,
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
        mask = home.mask.numpy()
        assert mask[row, column].all(), "answers are of attended tokens"
        tokens = mask.cumsum(axis=1)[row, column] - 1
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


def _who(teacher: dict[str, Any]) -> dict[str, Any]:
    """What of a teacher's config decides its answers: not where it lies (weights are compared by their hashes), what it
    had to prove, nor on which devices it was."""
    kept = {name: value for name, value in teacher.items() if name not in _BESIDE_THE_POINT}
    return kept | ({"members": [_who(member) for member in kept["members"]]} if "members" in kept else {})


_BESIDE_THE_POINT = ("guard", "path", "placement", "own_ranks")


class ShapesOfAnswers(CachedSource):
    """The teacher before it has answered: everything it says has its shape, and no values."""

    def __init__(self, keep: Keep, temperature: float, vocabulary: int) -> None:
        self.keep, self.temperature, self.vocabulary = keep, temperature, vocabulary

    @property
    def dims(self) -> Dims:
        return Dims(layers=0, hidden=0, vocabulary=self.vocabulary)

    def signals(self, batch: Batch, needs: Needs) -> Signals:
        def kept(rows: Tensor) -> Kept:
            ids = torch.zeros(len(rows), self.keep.entries, dtype=torch.int64)
            log_probs = torch.empty(ids.shape, device="meta")
            return Kept(ids, log_probs, ghost=self.keep.kind == "top_k", temperature=self.temperature)

        return Signals(_no_head, kept=kept)


def _no_head(fn: HeadFunction[Any], rows: Tensor, layers: Sequence[int] = (-1,)) -> Any:
    raise UserError(
        "a cached teacher has no vocabulary head", "its answers are all there is", "use teacher: online or ensemble"
    )
