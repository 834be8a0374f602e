"""Match how the teacher's positions relate to each other in one layer (MiniLM, Wang et al. 2020; MiniLMv2, 2021)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from megadistill.core.errors import UserError
from megadistill.core.types import Attention, Batch, Dims, Needs, Signals, Term
from megadistill.kernels.attention_losses import relation_kl
from megadistill.objectives.base import Objective
from megadistill.objectives.layer_maps import Weights

Relation = Literal["qk", "qq", "kk", "vv"]


class AttentionRelation(Objective):
    """KL(teacher || student) of softmax(a b' / sqrt(d)) between positions, mean over heads and attended positions,
    weighted sum over relations, in nats.

    MiniLM (Wang et al. 2020), equations 5 to 8: relations [qk, vv] of the last layers with the models' own heads, as
    many in both. MiniLMv2 (Wang et al. 2021), equation 4: relations [qq, kk, vv] of any layers, `heads` cut anew from
    both models, so that neither the numbers of heads nor the widths need be equal. Works with any attention of
    transformers' interface: relations are recomputed from queries, keys and values, some rows at a time.
    """

    kind: Literal["attention_relation"]
    relations: list[Relation] = Field(["qk", "vv"], min_length=1)
    """Whose products make each relation: qk is the attention itself, vv MiniLM's value relation."""
    relation_weights: Weights | None = None
    """One per relation; None: 1 each (MiniLM), MiniLMv2 takes 1/3 each."""
    heads: int | None = Field(None, gt=0)
    """Relation heads; None: the models' own. MiniLMv2 takes 48 for base and 64 for large teachers."""
    student_layer: int = -1
    """From 1; negative counts from the last."""
    teacher_layer: int = -1
    """Likewise; MiniLMv2 takes 21 of 24 for large teachers and the last for base ones."""

    def needs(self) -> Needs:
        return Needs(
            teacher=True,
            student_attention=frozenset({self.student_layer}),
            teacher_attention=frozenset({self.teacher_layer}),
        )

    def build(self, student: Dims, teacher: Dims | None) -> _RelationLoss:
        assert teacher is not None
        for name, layer, dims in (
            ("student_layer", self.student_layer, student),
            ("teacher_layer", self.teacher_layer, teacher),
        ):
            if not (1 <= layer <= dims.layers or -dims.layers <= layer <= -1):
                raise UserError(
                    f"{name}: there is no layer {layer}", f"there are 1 to {dims.layers}", "name one of them"
                )
        if self.heads is None and student.heads != teacher.heads:
            raise UserError(
                f"the teacher has {teacher.heads} attention heads a layer, the student {student.heads}",
                "without `heads`, head i of the student learns from head i of the teacher",
                "set `heads` (MiniLMv2) to a number that divides both models' widths",
            )
        if self.heads is not None:
            self._refuse_uneven(self.heads, student, teacher)
        weights = self.relation_weights or [1.0] * len(self.relations)
        if len(weights) != len(self.relations):
            raise UserError(
                f"relation_weights: {len(weights)} for {len(self.relations)} relations",
                f"{self.relations}",
                "give one weight per relation",
            )
        return _RelationLoss(self, weights)

    def _refuse_uneven(self, heads: int, student: Dims, teacher: Dims) -> None:
        """Of a `qk` relation both sides are as wide as the queries: keys are repeated for the queries they serve."""
        sides = {{"kk": "keys", "vv": "values"}.get(relation, "queries") for relation in self.relations}
        widths = {
            f"the {who}'s {side}": dims.queries if side == "queries" else dims.keys
            for who, dims in (("student", student), ("teacher", teacher))
            for side in sorted(sides)
        }
        known = {name: width for name, width in widths.items() if width is not None}
        uneven = [f"{name} have {width} values" for name, width in known.items() if width % heads]
        if uneven:
            raise UserError(
                f"heads: {heads} does not divide what relations are made of",
                "; ".join(uneven),
                f"take a divisor of {math.gcd(*known.values())}",
            )


class _RelationLoss:
    def __init__(self, config: AttentionRelation, weights: list[float]) -> None:
        self.config, self.weights = config, weights

    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        assert teacher is not None
        ours, goal = student.attention[self.config.student_layer], teacher.attention[self.config.teacher_layer]
        length = batch.mask.shape[1]
        seen = (ours.visible & goal.visible).expand(len(batch.mask), 1, length, length)
        total = torch.zeros((), device=batch.mask.device)
        for relation, weight in zip(self.config.relations, self.weights, strict=True):
            mine, theirs = self._pair(ours, relation), self._pair(goal, relation)
            scales = self._scale(ours, relation, mine), self._scale(goal, relation, theirs)
            kl = relation_kl(*mine, *theirs, batch.mask, seen=seen, scales=scales)
            total = total + weight / mine[0].shape[1] * kl
        return Term(total, "tokens")

    def _pair(self, attention: Attention, relation: Relation) -> tuple[Tensor, Tensor]:
        """The two sides of a relation, both [B, heads, L, d]."""
        heads = self.config.heads or attention.query.shape[1]
        sides = {"q": attention.query, "k": attention.key, "v": attention.value}
        first, second = (sides[side] for side in relation)
        if self.config.heads is None or relation == "qk":  # grouped keys and values serve several query heads
            own = attention.query.shape[1]
            first, second = (torch.repeat_interleave(s, own // s.shape[1], dim=1) for s in (first, second))
        if self.config.heads is None:
            return first, second
        return regrouped(first, heads), regrouped(second, heads)

    def _scale(self, attention: Attention, relation: Relation, pair: tuple[Tensor, Tensor]) -> float:
        if relation == "qk" and self.config.heads is None:
            return attention.scale
        return float(pair[0].shape[-1] ** -0.5)


def regrouped(values: Tensor, heads: int) -> Tensor:
    """[B, A, L, D] -> [B, heads, L, A D / heads]: the heads laid side by side and cut anew (MiniLMv2, section 3.2).

    Raises:
        UserError: `heads` does not divide A D.
    """
    num_rows, a, length, d = values.shape
    if a * d % heads:
        raise UserError(f"attention_relation: heads: {heads} does not divide {a} heads of {d}", "", "take a divisor")
    flat = values.transpose(1, 2).reshape(num_rows, length, a * d)
    return flat.view(num_rows, length, heads, -1).transpose(1, 2)
