"""Point the student's hidden states where the teacher's point (DistilBERT, Sanh et al. 2019, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from megadistill.core.errors import UserError
from megadistill.core.types import Batch, Dims, Needs, Signals, Term
from megadistill.kernels.hidden_losses import hidden_losses
from megadistill.objectives.base import Objective
from megadistill.objectives.layer_maps import Layers, Weights, layer_map, weights_of

LAST = -1


class Cosine(Objective):
    """1 - cos(student, teacher) of hidden states, mean over attended positions of the global batch, weighted sum over
    layers (DistilBERT: the last alone)."""

    kind: Literal["cosine"]
    layers: Layers = "last"
    """Which teacher layer teaches which student layer."""
    layer_weights: Weights | None = None
    """One per pair by ascending student layer; None: 1 each."""

    def needs(self) -> Needs:
        if self.layers == "last":
            return Needs(student_hidden=frozenset({LAST}), teacher_hidden=frozenset({LAST}), teacher=True)
        return Needs(teacher=True, teacher_hidden=frozenset({LAST}))  # which ones, the built loss says

    def build(self, student: Dims, teacher: Dims | None) -> _CosineLoss:
        assert teacher is not None
        if teacher.hidden != student.hidden:
            raise UserError(
                f"the teacher has {teacher.hidden}, the student {student.hidden} values a state",
                "a cosine is between states of one width",
                "give the student the teacher's width, or use hidden_mse, which learns a projection",
            )
        # the last is asked for as -1: then no other hidden state is kept
        pairs = {LAST: LAST} if self.layers == "last" else layer_map(self.layers, student, teacher)
        return _CosineLoss(pairs, weights_of(pairs, self.layer_weights))


class _CosineLoss:
    def __init__(self, pairs: dict[int, int], weights: Sequence[float]) -> None:
        self.pairs, self.weights = pairs, weights
        self.needs = Needs(frozenset(pairs), frozenset(pairs.values()), teacher=True)

    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        assert teacher is not None
        ours = [student.hidden[layer] for layer in self.pairs]
        goals = [teacher.hidden[layer] for layer in self.pairs.values()]
        return Term(hidden_losses("cosine", ours, goals, self.weights, batch.mask), "tokens")
