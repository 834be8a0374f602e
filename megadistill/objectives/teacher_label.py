"""Predict the token that the teacher ranks first: hard-label distillation (DeiT, Touvron et al. 2021, equation 3)."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from megadistill.core.types import AnswerKind, Batch, CountKind, Dims, Needs, Signals, Term
from megadistill.kernels.chunks import top_entries
from megadistill.kernels.head_losses import linear_ce
from megadistill.objectives.base import Objective


class TeacherLabel(Objective):
    """Cross-entropy with the teacher's argmax, mean over the positions in scope, in nats. It reads no label, so that
    every position of any text teaches."""

    kind: Literal["teacher_label"]
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"tokens", "label", "choice", "image"})
    scope: Literal["tokens", "targets"] = "tokens"
    """`tokens`: every attended position; `targets`: positions with a label only, or, of a task, with a question,
    labelled or not."""

    def needs(self) -> Needs:
        return Needs(teacher=True, logits=True, whole=True)

    def build(self, student: Dims, teacher: Dims | None) -> _TeacherLabelLoss:
        return _TeacherLabelLoss("tokens" if self.scope == "tokens" else "asked")


class _TeacherLabelLoss:
    def __init__(self, scope: CountKind) -> None:
        self.scope = scope

    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        assert teacher is not None
        rows = batch.attended if self.scope == "tokens" else batch.asked

        def cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            size = weight.shape[0]  # entries past it are the teacher's padding: no student can predict them
            labels = teacher.head(lambda h, w, b: top_entries(h, w[:size], None if b is None else b[:size]), rows)
            return linear_ce(hidden, weight, bias, labels)

        return Term(student.head(cross_entropy, rows), self.scope)
