"""Point at where an answer starts and ends (Devlin et al. 2019, section 4.2), as labels do or as the teacher does.

Softmax runs over the attended positions of a row, question and [CLS] included; padding never takes part.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from megadistill.core.types import AnswerKind, Batch, Dims, Needs, Signals, Term
from megadistill.objectives.base import Objective, wide

_OFF = -1e4
"""The logit of positions that are not attended: finite, so that it stays so times zero, and e^-10000 is 0."""


class SpanCE(Objective):
    """Cross-entropy with the labelled start and end, mean of both, mean over the rows of the whole global batch."""

    kind: Literal["span_ce"]
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"span"})

    def build(self, student: Dims, teacher: Dims | None) -> _SpanLoss:
        return _SpanLoss(None)


class SpanSoftCE(Objective):
    """T^2 * KL(teacher || student) of the distributions over starts and over ends, mean of both, mean over rows: the
    second stage of DistilBERT(D) on SQuAD (Sanh et al. 2019, table 2)."""

    kind: Literal["span_soft_ce"]
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"span"})
    temperature: float = Field(2.0, gt=0)
    """T, divides both models' logits."""

    def needs(self) -> Needs:
        return Needs(teacher=True)

    def build(self, student: Dims, teacher: Dims | None) -> _SpanLoss:
        return _SpanLoss(self.temperature)


class _SpanLoss:
    def __init__(self, temperature: float | None) -> None:
        """Args:
        temperature: of the teacher's distributions; None: the labels'.
        """
        self.temperature = temperature

    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        ours = span_logits(student, batch)
        if self.temperature is None:
            assert batch.spans is not None
            picked = ours.log_softmax(1).gather(1, batch.spans.unsqueeze(1)).squeeze(1)
            return Term(-0.5 * picked.sum(), "sequences")
        assert teacher is not None
        log_q = (ours / self.temperature).log_softmax(1)
        log_p = (span_logits(teacher, batch) / self.temperature).log_softmax(1).to(log_q)
        divergence = torch.where(batch.mask.unsqueeze(-1), log_p.exp() * (log_p - log_q), 0).sum()
        return Term(0.5 * self.temperature**2 * divergence, "sequences")


def span_logits(signals: Signals, batch: Batch) -> Tensor:
    """[B, L, 2] of every position as start and as end, in fp32 at least; `_OFF` where padding is."""

    def answer(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return wide(nn.functional.linear(hidden, weight, bias))

    logits = signals.head(answer, batch.attended)
    whole = logits.new_full((batch.mask.numel(), 2), _OFF)
    return whole.index_put((batch.attended,), logits).view(*batch.mask.shape, 2)
