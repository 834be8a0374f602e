"""Match the teacher's embedding output, through a learnt projection where widths differ (TinyBERT, equation 9)."""

from __future__ import annotations

from typing import Literal

from megadistill.core.types import Dims, Needs
from megadistill.objectives.base import Objective
from megadistill.objectives.hidden_mse import FitLoss, Positions, Projection


class EmbeddingMSE(Objective):
    """MSE(W e_student + b, e_teacher) of what enters the first layer (words, positions, types, normalised), mean over
    width, mean over tokens.

    TinyBERT (Jiao et al. 2020), equation 9. To share the projection with the layers, as TinyBERT's code does, name
    layer 0 in `hidden_mse.layers` instead.
    """

    kind: Literal["embedding_mse"]
    projection: Projection = "auto"
    """Of the student's width to the teacher's: `shared` or `none`; auto: only where they differ."""
    positions: Positions = "tokens"
    """The mean is over attended positions (tokens), or over padding too (all), which TinyBERT's code divides by."""

    def needs(self) -> Needs:
        return Needs(frozenset({0}), frozenset({0}), teacher=True)

    def build(self, student: Dims, teacher: Dims | None) -> FitLoss:
        assert teacher is not None
        return FitLoss({0: 0}, [1.0], student.hidden, teacher.hidden, self.projection, self.positions)
