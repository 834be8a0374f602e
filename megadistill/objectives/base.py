"""What an objective is: a config with its maths beside it, returning (sum, count)."""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch
from pydantic import Field, model_validator
from torch import Tensor

from megadistill.core.errors import UserError
from megadistill.core.schema import Strict, placed
from megadistill.core.types import AnswerKind, Batch, Dims, HeadName, Needs, Signals, Term


class Loss(Protocol):
    """A configured objective ready to compute: usually an `nn.Module`, so that projections it learns are trained,
    sharded and saved with the student. It may have `needs: Needs` where they depend on the models' sizes."""

    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term: ...


class Ramp(Strict):
    """A factor that moves linearly from `start` to `end` between two steps, and stays before and after."""

    from_step: int = Field(0, ge=0)
    """The last step of `start`."""
    to_step: int = Field(gt=0)
    """The first step of `end`."""
    start: float = Field(0.0, ge=0)
    """The factor up to `from_step`."""
    end: float = Field(1.0, ge=0)
    """The factor from `to_step` on."""

    @model_validator(mode="after")
    def _goes_forward(self) -> Ramp:
        if self.to_step <= self.from_step:
            raise ValueError(f"to_step {self.to_step} must come after from_step {self.from_step}")
        return self

    def at(self, step: int) -> float:
        """The factor of a step, counted from 1."""
        done = (step - self.from_step) / (self.to_step - self.from_step)
        return self.start + (self.end - self.start) * min(max(done, 0.0), 1.0)


class Objective(Strict):
    """Base of every objective. A new one is one file in this package: a subclass with `kind: Literal["name"]`."""

    kind: str
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"tokens", "label", "value", "span", "choice"})
    """What a batch may ask for where this objective means something."""
    weight: float = Field(1.0, ge=0)
    """Factor of this objective's mean in the training loss."""
    ramp: Ramp | None = None
    """Multiplies the weight as training goes on; None: 1 throughout."""
    name: str | None = None
    """What logs call it; the kind when not given. Two objectives of one kind need names."""
    head: HeadName | None = None
    """Which head of a student with a distillation token learns from it (DeiT: `class` from labels, `distillation` from
    the teacher); None: the student's whole answer, which is the mean of both heads' logits."""

    @property
    def label(self) -> str:
        return self.name or self.kind

    def weight_at(self, step: int) -> float:
        """Its weight at a step, counted from 1."""
        return self.weight * (self.ramp.at(step) if self.ramp is not None else 1.0)

    def needs(self) -> Needs:
        """What it reads of student and teacher; decides what the forward passes capture. Where that depends on the
        models' sizes, whether it reads a teacher is enough here: the built loss says the rest (see `needs_of`)."""
        return Needs()

    def remark(self) -> str:
        """What whoever chooses it should know and may well accept; `validate` says it. Empty: nothing."""
        return ""

    def build(self, student: Dims, teacher: Dims | None) -> Loss:
        """The loss itself; `teacher` is None when the run has no teacher.

        Raises:
            UserError: the models cannot have it. `field: what is wrong` is told as `objectives.2.field: ...`.
        """
        raise NotImplementedError


def build_loss(objective: Objective, number: int, student: Dims, teacher: Dims | None) -> Loss:
    """The loss of the config's `objectives.<number>`.

    Raises:
        UserError: the models cannot have it; what it says of a field is said with the field's path.
    """
    try:
        return objective.build(student, teacher)
    except UserError as error:
        at = (f"objectives.{number}", type(objective), objective.label)
        raise UserError(placed(error.what, *at), error.why, error.fix) from error


def needs_of(objective: Objective, loss: Loss) -> Needs:
    """What a built objective reads."""
    needs: Needs = getattr(loss, "needs", None) or objective.needs()
    return needs


def wide(values: Tensor) -> Tensor:
    """`values` in fp32, or fp64 where they are: what differences and norms are computed in."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
