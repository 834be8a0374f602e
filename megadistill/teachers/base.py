"""What a teacher is: something that answers a batch with signals, and may move after each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from megadistill.core.schema import Strict
from megadistill.core.types import AnswerKind, Batch, Dims, Needs, Signals
from megadistill.data.config import DataConfig
from megadistill.models.signals import LanguageModel
from megadistill.teachers.guard import Guard


class Source(Protocol):
    """A built teacher."""

    @property
    def models(self) -> Sequence[LanguageModel]:
        """The models it asks; the first gives the student its shapes and first weights. Empty: none is there yet."""
        ...

    @property
    def dims(self) -> Dims:
        """What objectives build for; read once the student is attached and the models know what they attend to."""
        ...

    def attach(self, student: LanguageModel) -> None:
        """Called once, before the first step, with the student at step 0: for teachers that come from it."""
        ...

    def signals(self, batch: Batch, needs: Needs) -> Signals:
        """Its answer to one micro-batch, outside autograd."""
        ...

    def after_step(self, step: int, student: torch.nn.Module) -> None:
        """Called after every optimizer step; a frozen teacher does nothing."""
        ...

    def identity(self) -> dict[str, Any]:
        """What a checkpoint records of it (name, sha256): a frozen teacher is a reference, never a copy."""
        ...

    def save(self, folder: Path) -> None:
        """Write what `load` needs, on rank 0 for every checkpoint; a frozen teacher writes nothing. `folder` is not
        there yet."""
        ...

    def load(self, folder: Path) -> None:
        """Go on from what `save` wrote, on every rank at resume."""
        ...


class Teacher(Strict):
    """Base of every teacher source's config."""

    kind: str
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"tokens", "label", "value", "span", "choice", "image"})
    """What a batch may ask for where this teacher can answer."""
    reads_student: ClassVar[bool] = False
    """Whether it reads the student's whole weights after a step."""
    answers_first: ClassVar[bool] = False
    """Whether its `prepare` has something to make."""
    guard: Guard | None = Guard()
    """What it must prove before the first step; None: nothing."""

    def stands_for(self, rows: Sequence[str]) -> Teacher:
        """The teacher that is meant for a run on the corpora of these names, in their order, or on the one task; asked
        before anything else.

        Raises:
            UserError: it knows nothing of them.
        """
        return self

    def fetch(self) -> None:
        """Bring here, while there is network, what `build` will read without; `prepare` calls it."""

    def paths(self) -> list[str]:
        """Folders or hub names of its models, whose tokenizers must be the data's."""
        return []

    def prepare(self, data: DataConfig, seed: int, say: Callable[[str], None], share: tuple[int, int]) -> bool:
        """Make from the finished shards whatever training will read besides; `prepare` calls it last, with the run's
        seed and the (i, n) of its --share.

        Returns:
            whether all of it is there; else other shares have some to make.
        """
        return True

    def cannot(self, needs: Needs) -> str:
        """Why it cannot give all of `needs`, and what would; empty where it can."""
        return ""

    def cannot_read(self, data: DataConfig) -> str:
        """Why it cannot answer the rows of `data`, and what to do; empty where it can."""
        return ""

    def check(self, data: DataConfig) -> None:
        """Compare what `prepare` made with what is asked for now; called before `build`.

        Raises:
            UserError: it is missing or stale.
        """

    @property
    def meets_every(self) -> int:
        """After every so many steps it takes a checkpoint of another run, which takes one of this; 0: it does not."""
        return 0

    @property
    def patience(self) -> float:
        """How many seconds its `after_step` may wait for somebody else without the run being taken for hung."""
        return 0.0

    def origin(self, empty: bool = False) -> LanguageModel | None:
        """A model for the student's shapes and weights, where the built source has none (`empty`: for shapes only)."""
        return None

    def stored(self) -> LanguageModel | None:
        """The model that gives the student its first weights, as its files have them, where `build` may have rounded
        it; None: what is built is all there is."""
        return self.origin()

    def empty(self, device: torch.device) -> Source:
        """What `build` makes for `device`, with its sizes and without its weights (on torch's meta device): `plan` runs
        it for its shapes."""
        return self.build(torch.device("meta"))

    def build(self, device: torch.device) -> Source:
        raise NotImplementedError

    def asked(self, device: torch.device) -> Source:
        """What answers rows that training never shows: what is built, or where that only reads answers, who gave them.
        Its models may be on the CPU yet."""
        return self.build(device)
