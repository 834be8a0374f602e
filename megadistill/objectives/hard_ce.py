"""Predict the text itself: masked or causal language modelling, whichever the batch's labels ask for."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from megadistill.core.types import AnswerKind, Dims
from megadistill.kernels.head_losses import Hard
from megadistill.objectives.base import Objective
from megadistill.objectives.mixture import HeadLoss


class HardCE(Objective):
    """Cross-entropy with the labels, mean over all targets of the whole global batch, in nats.

    `data.targets` decides what the labels are: `mlm` (Devlin et al. 2019, 3.1) or `clm` (the next token).
    """

    kind: Literal["hard_ce"]
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"tokens", "label", "choice", "image"})
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """This much of each target's weight lies evenly on the whole vocabulary (Szegedy et al. 2016, section 7)."""

    def build(self, student: Dims, teacher: Dims | None) -> HeadLoss:
        return HeadLoss(Hard(self.label_smoothing), "targets")
