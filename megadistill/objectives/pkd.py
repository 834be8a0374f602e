"""Learn patiently from the teacher's intermediate layers (Patient-KD, Sun et al. 2019, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from megadistill.core.errors import UserError
from megadistill.core.types import Batch, Dims, Needs, Signals, Term
from megadistill.kernels.hidden_losses import Kind, hidden_losses
from megadistill.objectives.base import Objective
from megadistill.objectives.layer_maps import Weights, layer_map, weights_of


class PKD(Objective):
    """The squared distance of L2-normalised states, | h_s/|h_s| - h_t/|h_t| |^2, over all student layers but the last
    (whose [CLS] the predictions train). Patient-KD (Sun et al. 2019), equation 7; its beta is this `weight`.
    """

    kind: Literal["pkd"]
    layers: Literal["skip", "last"] | dict[int, int] = "skip"
    """skip: every (N / M)-th teacher layer, 2, 4, ..., 10 for 6 of 12; last: the teacher's last ones but one, 7 ... 11;
    or {student layer: teacher layer}."""
    layer_weights: Weights | None = None
    """One per pair by ascending student layer; None: 1 each."""
    normalize: bool = True
    """Divide each state by its L2 norm first."""
    positions: Literal["cls", "tokens"] = "cls"
    """cls: the first position of each row, mean over rows; tokens: every attended one, mean over them."""
    reduction: Literal["mean", "sum"] = "mean"
    """Over layers and width. mean: as the published code computes it, and in whose scale betas of 10 to 1000 are meant;
    sum: as equation 7 is written, (layers x width) times more."""

    def needs(self) -> Needs:
        return Needs(teacher=True, teacher_hidden=frozenset({-1}))  # which ones, the built loss says

    def build(self, student: Dims, teacher: Dims | None) -> _PKDLoss:
        assert teacher is not None
        if student.hidden != teacher.hidden:
            raise UserError(
                f"the teacher's states have {teacher.hidden} values, the student's {student.hidden}",
                "patient distillation compares states of one width",
                "give the student the teacher's width, or use hidden_mse, which learns a projection",
            )
        if isinstance(self.layers, dict):
            pairs = layer_map(self.layers, student, teacher)
        else:
            name: Literal["uniform", "top"] = "uniform" if self.layers == "skip" else "top"
            pairs = layer_map(name, student, teacher)
            pairs.pop(student.layers)
        if not pairs:
            raise UserError(
                f"layers: {self.layers} leaves nothing of a student of one layer",
                "the last layer is left to the predictions",
                "name the pair, as in {1: 6}, or take a deeper student",
            )
        return _PKDLoss(self, pairs, weights_of(pairs, self.layer_weights), student.hidden)


class _PKDLoss:
    def __init__(self, config: PKD, pairs: dict[int, int], weights: Sequence[float], width: int) -> None:
        self.config, self.pairs, self.weights = config, pairs, weights
        self.factor = 1.0 / (len(pairs) * width) if config.reduction == "mean" else 1.0
        self.needs = Needs(frozenset(pairs), frozenset(pairs.values()), teacher=True)

    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        assert teacher is not None
        length = 1 if self.config.positions == "cls" else batch.mask.shape[1]
        ours = [student.hidden[layer][:, :length] for layer in self.pairs]
        goals = [teacher.hidden[layer][:, :length] for layer in self.pairs.values()]
        weights = [self.factor * weight for weight in self.weights]
        kind: Kind = "normalized" if self.config.normalize else "squares"
        total = hidden_losses(kind, ours, goals, weights, batch.mask[:, :length])
        return Term(total, "sequences" if length == 1 else "tokens")
