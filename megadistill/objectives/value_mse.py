"""Give the number that a task asks for: regression, as on STS-B (Devlin et al. 2019 fine-tune it so)."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from megadistill.core.types import AnswerKind, Batch, Dims, Signals, Term
from megadistill.objectives.base import Objective, wide


class ValueMSE(Objective):
    """(rating - label)^2, mean over the labelled rows of the whole global batch."""

    kind: Literal["value_mse"]
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"value"})

    def build(self, student: Dims, teacher: Dims | None) -> _ValueLoss:
        return _ValueLoss()


class _ValueLoss:
    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        assert batch.values is not None
        values = batch.values[batch.targets // batch.labels.shape[1]]  # nobody has rated augmented rows

        def squares(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            ratings = wide(nn.functional.linear(hidden, weight, bias)).squeeze(-1)
            return (ratings - values.to(ratings)).square().sum()

        return Term(student.head(squares, batch.targets), "targets")
