"""Match the teacher's logits themselves (Ba & Caruana 2014, section 2.1; Tang et al. 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from megadistill.core.types import AnswerKind, Batch, CountKind, Dims, Needs, Signals, Term
from megadistill.kernels.chunks import chunks, fp32_logits
from megadistill.kernels.forward_gradient import with_gradient
from megadistill.objectives.base import Objective, wide


class LogitsMSE(Objective):
    """|z_student - z_teacher|^2 of the logits, mean over the positions in scope. With high temperatures soft_ce tends
    to this with centred logits (Hinton et al. 2015, equation 4)."""

    kind: Literal["logits_mse"]
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"tokens", "label", "value", "choice", "image"})
    reduction: Literal["mean", "sum"] = "mean"
    """Over the vocabulary. mean: Tang et al.; sum: DistilBERT's code."""
    scope: Literal["tokens", "targets"] = "tokens"
    """`tokens`: every attended position; `targets`: positions with a label only, or, of a task, with a question,
    labelled or not."""
    center: bool = False
    """Subtract each position's mean logit first: logits that differ by a constant are the same distribution."""
    temperature: float = Field(1.0, gt=0)
    """T, divides both models' logits, and so the loss by T^2 (TextBrewer's kd_mse)."""

    def needs(self) -> Needs:
        return Needs(teacher=True, logits=True, whole=True)

    def build(self, student: Dims, teacher: Dims | None) -> _LogitsMSELoss:
        classes = student.vocabulary if self.reduction == "mean" else 1
        factor = 1 / (classes * self.temperature**2)
        return _LogitsMSELoss("tokens" if self.scope == "tokens" else "asked", factor, self.center)


class _LogitsMSELoss:
    def __init__(self, scope: CountKind, factor: float, center: bool) -> None:
        self.scope, self.factor, self.center = scope, factor, center

    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        assert teacher is not None
        rows = batch.attended if self.scope == "tokens" else batch.asked

        def squares(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            size = weight.shape[0]
            return teacher.head(
                lambda h, w, b: linear_logits_mse(
                    hidden, weight, bias, h, w[:size], None if b is None else b[:size], self.center
                ),
                rows,
            )

        return Term(self.factor * student.head(squares, rows), self.scope)


def linear_logits_mse(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    center: bool = False,
) -> Tensor:
    """The sum over rows and vocabulary of (student logit - teacher logit)^2, without the logits of all rows at once.

    Args:
        hidden: [N, H], `weight` [V, H], `bias` [V] the student's head.
        teacher_hidden: [N, Ht], `teacher_weight` [V, Ht], `teacher_bias` [V]; no gradient flows into them.
        center: subtract each row's mean from both models' logits.

    Returns:
        [] fp32 (fp64 for fp64 input); 0 connected to the graph when N = 0.
    """
    dtype = torch.promote_types(hidden.dtype, torch.float32)

    def compute(needed: Sequence[bool]) -> tuple[Tensor, list[Tensor | None]]:
        total = torch.zeros((), dtype=dtype, device=hidden.device)
        into = [
            torch.zeros_like(part, dtype=dtype) if is_needed and part is not None else None
            for part, is_needed in zip((hidden, weight, bias), needed, strict=True)
        ]
        for rows in chunks(hidden.shape[0], weight.shape[0], num_buffers=3):
            difference = fp32_logits(hidden[rows], weight, bias)
            difference -= fp32_logits(teacher_hidden[rows], teacher_weight, teacher_bias).to(dtype)
            if center:
                difference -= difference.mean(-1, keepdim=True)
            total += difference.square().sum()
            gradient = difference.mul_(2)
            if into[0] is not None:
                into[0][rows] = gradient @ weight.to(dtype)
            if into[1] is not None:
                into[1].addmm_(gradient.T, wide(hidden[rows]))
            if into[2] is not None:
                into[2] += gradient.sum(0)
        return total, into

    return with_gradient((hidden, weight, bias), compute)
