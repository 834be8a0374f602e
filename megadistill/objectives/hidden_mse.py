"""Match the teacher's hidden states, through a learnt projection where widths differ (TinyBERT, Jiao et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

from megadistill.core.errors import UserError
from megadistill.core.types import Batch, Dims, Needs, Signals, Term
from megadistill.kernels.hidden_losses import hidden_losses
from megadistill.objectives.base import Objective
from megadistill.objectives.layer_maps import Layers, Weights, layer_map, weights_of

Projection = Literal["auto", "shared", "per_layer", "none"]
Positions = Literal["tokens", "all"]


class HiddenMSE(Objective):
    """MSE(W h_student + b, h_teacher), mean over width, mean over tokens, weighted sum over the mapped layers.

    TinyBERT (Jiao et al. 2020), equation 8; W is H x Ht, trained and saved with the student, not exported.
    """

    kind: Literal["hidden_mse"]
    layers: Layers = "uniform"
    """Which teacher layer teaches which student layer."""
    layer_weights: Weights | None = None
    """lambda_m of TinyBERT's equation 6, one per pair by ascending student layer; None: 1 each."""
    projection: Projection = "auto"
    """Of the student's width to the teacher's: one W and bias for all layers (shared, as in TinyBERT's code), one
    for each (per_layer), or none; auto: shared where the widths differ, else none."""
    positions: Positions = "tokens"
    """The mean is over attended positions (tokens), or over padding too (all), which TinyBERT's code divides by."""

    def needs(self) -> Needs:
        return Needs(teacher=True, teacher_hidden=frozenset({-1}))  # which ones, the built loss says

    def build(self, student: Dims, teacher: Dims | None) -> FitLoss:
        assert teacher is not None
        pairs = layer_map(self.layers, student, teacher)
        weights = weights_of(pairs, self.layer_weights)
        return FitLoss(pairs, weights, student.hidden, teacher.hidden, self.projection, self.positions)


class FitLoss(nn.Module):
    """The weighted sum over pairs of layers of the (projected) squared difference."""

    def __init__(
        self,
        pairs: dict[int, int],
        weights: Sequence[float],
        width: int,
        teacher_width: int,
        projection: Projection,
        positions: Positions,
    ) -> None:
        super().__init__()
        if projection == "none" and width != teacher_width:
            raise UserError(
                f"projection: none, and the teacher's states have {teacher_width} values, the student's {width}",
                "states of different widths have no difference",
                "use projection: shared, or a student of the teacher's width",
            )
        if projection == "auto":
            projection = "none" if width == teacher_width else "shared"
        count = {"none": 0, "shared": 1, "per_layer": len(pairs)}[projection]
        self.fit = nn.ModuleList(nn.Linear(width, teacher_width) for _ in range(count))
        self.pairs, self.weights, self.positions = pairs, weights, positions
        self.needs = Needs(frozenset(pairs), frozenset(pairs.values()), teacher=True)

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        assert teacher is not None
        ours = [student.hidden[layer] for layer in self.pairs]
        if len(self.fit):
            ours = [self.fit[index % len(self.fit)](state) for index, state in enumerate(ours)]
        goals = [teacher.hidden[layer] for layer in self.pairs.values()]
        weights = [weight / goals[0].shape[-1] for weight in self.weights]
        if self.positions == "tokens":
            return Term(hidden_losses("squares", ours, goals, weights, batch.mask), "tokens")
        everywhere = torch.ones_like(batch.mask)
        return Term(hidden_losses("squares", ours, goals, weights, everywhere) / batch.mask.shape[1], "sequences")
