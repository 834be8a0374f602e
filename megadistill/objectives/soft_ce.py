"""Match the teacher's softened distribution over the vocabulary (Hinton, Vinyals & Dean 2015, section 2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from megadistill.core.types import IGNORE, Batch, CountKind, Dims, Needs, Signals, Term
from megadistill.kernels.linear_soft_ce import linear_soft_ce
from megadistill.objectives.base import Objective


class SoftCE(Objective):
    """T^2 * KL(teacher || student), mean over the positions in scope of the whole global batch, in nats."""

    kind: Literal["soft_ce"]
    temperature: float = Field(2.0, gt=0)
    """T, divides both models' logits."""
    scope: Literal["tokens", "targets"] = "tokens"
    """`tokens`: every attended position, as DistilBERT's code does; `targets`: positions with a label only."""

    def needs(self) -> Needs:
        return Needs(teacher=True)

    def build(self, student: Dims, teacher: Dims | None) -> _SoftCELoss:
        return _SoftCELoss(self.temperature, self.scope)


class _SoftCELoss:
    def __init__(self, temperature: float, scope: CountKind) -> None:
        self.temperature, self.scope = temperature, scope

    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        assert teacher is not None
        selected = batch.mask if self.scope == "tokens" else batch.labels != IGNORE
        rows = selected.flatten().nonzero().squeeze(1)
        # the teacher's head runs inside the student's, so that both weights are readable at once
        total = student.head(
            lambda hidden, weight, bias: teacher.head(
                lambda t_hidden, t_weight, t_bias: linear_soft_ce(
                    hidden, weight, bias, t_hidden, t_weight, t_bias, self.temperature
                ),
                rows,
            ),
            rows,
        )
        return Term(total, self.scope)
