"""Match the teacher's attention scores before the softmax (TinyBERT, Jiao et al. 2020, equation 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from megadistill.core.errors import UserError
from megadistill.core.types import Attention, Batch, Dims, Needs, Signals, Term
from megadistill.objectives.base import Objective, wide
from megadistill.objectives.layer_maps import Layers, layer_map, weights_of
from megadistill.objectives.relations import by_rows


class AttentionMSE(Objective):
    """MSE of q k / sqrt(d) per head: mean over heads and over the keys that a position sees, mean over attended
    positions, weighted sum over the mapped layers. Head i learns from head i, so both models need as many.

    Scores are recomputed from queries and keys, so that any attention implementation of transformers' interface serves
    and none has to store them; `form: pairs` holds [heads, L, L] of some rows at a time, also in the backward pass.
    """

    kind: Literal["attention_mse"]
    layers: Layers = "uniform"
    """Which teacher layer teaches which student layer."""
    layer_weights: list[float] | None = Field(None, min_length=1)
    """One per pair by ascending student layer; None: 1 each."""
    form: Literal["pairs", "gram"] = "pairs"
    """pairs: every query with every key. gram: the same sum from d x d products, |QK' - PR'|^2 = <Q'Q, K'K> - ...: no
    L x L matrix at all, but only where every attended position of a row sees every other."""
    positions: Literal["tokens", "all"] = "tokens"
    """tokens: as above. all: the sum over attended pairs divided by rows x L x L x heads, which is TinyBERT's code's
    mean (it sets padding's scores to 0 on both sides and counts them)."""

    def needs(self) -> Needs:
        return Needs(teacher=True)

    def build(self, student: Dims, teacher: Dims | None) -> _AttentionMSELoss:
        assert teacher is not None
        where = f"objectives: {self.label}"
        if student.heads != teacher.heads:
            raise UserError(
                f"{where}: the teacher has {teacher.heads} attention heads a layer, the student {student.heads}",
                "head i of the student learns the scores of head i of the teacher",
                "give the student as many heads, or use attention_relation, which regroups them",
            )
        if self.form == "gram" and not (student.full_attention and teacher.full_attention):
            raise UserError(
                f"{where}.form: gram sums over all pairs of positions, and a model here does not see all of them",
                "it is causal, has sliding windows, or attends within documents",
                "use form: pairs (it costs heads x L x L scores of a few rows at a time)",
            )
        pairs = layer_map(self.layers, student, teacher, f"{where}.layers")
        if 0 in pairs or 0 in pairs.values():
            raise UserError(f"{where}.layers: the embeddings (0) attend to nothing", f"{pairs}", "name layers from 1")
        return _AttentionMSELoss(self, pairs, weights_of(pairs, self.layer_weights, f"{where}.layer_weights"))


class _AttentionMSELoss:
    def __init__(self, config: AttentionMSE, pairs: dict[int, int], weights: Sequence[float]) -> None:
        self.config, self.pairs, self.weights = config, pairs, weights
        self.needs = Needs(
            teacher=True, student_attention=frozenset(pairs), teacher_attention=frozenset(pairs.values())
        )

    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        assert teacher is not None
        every = self.config.positions == "all"
        total: Tensor | float = 0.0
        for (layer, theirs), weight in zip(self.pairs.items(), self.weights, strict=True):
            ours, goal = student.attention[layer], teacher.attention[theirs]
            sums = gram_squares if self.config.form == "gram" else pair_squares
            total = total + weight * sums(ours, goal, batch.mask, mean_over_keys=not every).sum()
        if every:
            return Term(total / batch.mask.shape[1] ** 2, "sequences")
        return Term(total, "tokens")


def pair_squares(ours: Attention, goal: Attention, mask: Tensor, mean_over_keys: bool) -> Tensor:
    """[B]: squared differences of scores, mean over heads, mean or sum over seen keys, sum over attended queries."""

    def squares(q: Tensor, k: Tensor, q_goal: Tensor, k_goal: Tensor, seen: Tensor) -> Tensor:
        difference = ours.scale * (q @ k.transpose(-1, -2)) - goal.scale * (q_goal @ k_goal.transpose(-1, -2))
        per_query = (difference * seen).square().sum(-1)
        if mean_over_keys:
            per_query = per_query / seen.sum(-1).clamp(min=1)
        return per_query.mean(1).sum(-1)

    seen = ours.visible & goal.visible & mask[:, None, None, :] & mask[:, None, :, None]
    return by_rows(squares, ours.query, _each_head(ours), goal.query, _each_head(goal), seen)


def gram_squares(ours: Attention, goal: Attention, mask: Tensor, mean_over_keys: bool) -> Tensor:
    """What `pair_squares` returns where all attended positions of a row see one another.

    Sum_ij (q_i.k_j - p_i.r_j)^2 = <Q'Q, K'K> - 2 <Q'P, K'R> + <P'P, R'R>, with [d, d] products. The three cancel: in
    fp32 the result loses about as many digits as the loss lies below the scores' own square.
    """
    inside = mask[:, None, :, None]
    q, k = wide(ours.query) * ours.scale * inside, wide(_each_head(ours)) * inside
    p, r = wide(goal.query) * goal.scale * inside, wide(_each_head(goal)) * inside

    def inner(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return ((a.transpose(-1, -2) @ b) * (c.transpose(-1, -2) @ d)).sum((-1, -2)).mean(1)

    total = inner(q, q, k, k) - 2 * inner(q, p, k, r) + inner(p, p, r, r)
    return total / mask.sum(-1).clamp(min=1) if mean_over_keys else total


def _each_head(attention: Attention) -> Tensor:
    """[B, A, L, D]: grouped keys repeated, so that every query head has its own."""
    return torch.repeat_interleave(attention.key, attention.query.shape[1] // attention.key.shape[1], dim=1)
