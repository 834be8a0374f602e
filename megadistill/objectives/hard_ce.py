"""Predict the text itself: masked or causal language modelling, whichever the batch's labels ask for."""

from __future__ import annotations

from typing import Literal

from megadistill.core.types import IGNORE, Batch, Dims, Signals, Term
from megadistill.kernels.linear_ce import linear_ce
from megadistill.objectives.base import Objective


class HardCE(Objective):
    """Cross-entropy with the labels, mean over all targets of the whole global batch, in nats.

    `data.targets` decides what the labels are: `mlm` (Devlin et al. 2019, 3.1) or `clm` (the next token).
    """

    kind: Literal["hard_ce"]

    def build(self, student: Dims, teacher: Dims | None) -> _HardCELoss:
        return _HardCELoss()


class _HardCELoss:
    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        labels = batch.labels.flatten()
        rows = (labels != IGNORE).nonzero().squeeze(1)
        total = student.head(lambda hidden, weight, bias: linear_ce(hidden, weight, bias, labels[rows]), rows)
        return Term(total, "targets")
