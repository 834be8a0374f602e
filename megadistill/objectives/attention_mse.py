"""Match the teacher's attention scores before the softmax (TinyBERT, Jiao et al. 2020, equation 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megadistill.core.errors import UserError
from megadistill.core.types import Attention, Batch, Dims, Needs, Signals, Term
from megadistill.kernels.attention_losses import score_mse
from megadistill.objectives.base import Objective, wide
from megadistill.objectives.layer_maps import Layers, Weights, layer_map, weights_of

SCORES = 1 << 24
"""Scores of each model that `form: pairs` holds at once."""


class AttentionMSE(Objective):
    """MSE of q k / sqrt(d) per head: mean over heads and over the keys that a position sees, mean over attended
    positions, weighted sum over the mapped layers. Head i learns from head i, so both models need as many.

    Scores are recomputed from queries and keys, so that any attention implementation of transformers' interface serves
    and none has to store them; `form: pairs` holds [heads, L, L] of some rows at a time, also in the backward pass.
    """

    kind: Literal["attention_mse"]
    layers: Layers = "uniform"
    """Which teacher layer teaches which student layer."""
    layer_weights: Weights | None = None
    """One per pair by ascending student layer; None: 1 each."""
    form: Literal["pairs", "gram"] = "pairs"
    """pairs: every query with every key. gram: the same sum from d x d products, |QK' - PR'|^2 = <Q'Q, K'K> - ...: no
    L x L matrix at all, but only where every attended position of a row sees every other."""
    positions: Literal["tokens", "all"] = "tokens"
    """tokens: as above. all: TinyBERT's code's mean over rows x heads x L x L, in which padding's queries are compared
    too, and every score of a key that is not seen counts as equal."""

    def needs(self) -> Needs:
        return Needs(teacher=True, teacher_attention=frozenset({-1}))  # which ones, the built loss says

    def build(self, student: Dims, teacher: Dims | None) -> _AttentionMSELoss:
        assert teacher is not None
        if student.heads != teacher.heads:
            raise UserError(
                f"the teacher has {teacher.heads} attention heads a layer, the student {student.heads}",
                "head i of the student learns the scores of head i of the teacher",
                "give the student as many heads, or use attention_relation, which regroups them",
            )
        if self.form == "gram" and not (student.full_attention and teacher.full_attention):
            raise UserError(
                "form: gram sums over all pairs of positions, and a model here does not see all of them",
                "it is causal, has sliding windows, or attends within documents",
                "use form: pairs (it costs heads x L x L scores of a few rows at a time)",
            )
        pairs = layer_map(self.layers, student, teacher)
        if 0 in pairs or 0 in pairs.values():
            raise UserError("layers: the embeddings (0) attend to nothing", f"{pairs}", "name layers from 1")
        return _AttentionMSELoss(self, pairs, weights_of(pairs, self.layer_weights))


class _AttentionMSELoss:
    def __init__(self, config: AttentionMSE, pairs: dict[int, int], weights: Sequence[float]) -> None:
        self.config, self.pairs, self.weights = config, pairs, weights
        self.needs = Needs(
            teacher=True, student_attention=frozenset(pairs), teacher_attention=frozenset(pairs.values())
        )

    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        assert teacher is not None
        published = self.config.positions == "all"
        total = torch.zeros((), device=batch.mask.device)
        for (layer, theirs), weight in zip(self.pairs.items(), self.weights, strict=True):
            ours, goal = student.attention[layer], teacher.attention[theirs]
            sums = gram_squares if self.config.form == "gram" else pair_squares
            total = total + weight * sums(ours, goal, batch.mask, published)
        if published:
            return Term(total / batch.mask.shape[1] ** 2, "sequences")
        return Term(total, "tokens")


def pair_squares(ours: Attention, goal: Attention, mask: Tensor, published: bool) -> Tensor:
    """[]: squared differences of scores, mean over heads and over the keys that a query sees, sum over attended
    queries; or, as published, sums over keys and over all queries."""

    def squares(q: Tensor, k: Tensor, q_goal: Tensor, k_goal: Tensor, seen: Tensor) -> Tensor:
        difference = ours.scale * (q @ k.transpose(-1, -2)) - goal.scale * (q_goal @ k_goal.transpose(-1, -2))
        per_query = (difference * seen).square().sum(-1)
        if not published:
            per_query = per_query / seen.sum(-1).clamp(min=1)
        return per_query.mean(1).sum()

    seen = ours.visible & goal.visible & mask[:, None, None, :]
    seen = seen if published else seen & mask[:, None, :, None]
    return _by_rows(squares, ours.query, _each_head(ours), goal.query, _each_head(goal), seen)


def gram_squares(ours: Attention, goal: Attention, mask: Tensor, published: bool) -> Tensor:
    """[]: what `pair_squares` sums up to where every position of a row sees all attended ones."""
    q, p = ours.query, goal.query
    if not published:  # a row's squares divide by its number of keys if both models' queries divide by the root
        share = mask.sum(-1).clamp(min=1).to(wide(q).dtype).rsqrt()[:, None, None, None]
        q, p = wide(q) * share, wide(p) * share
    asking = torch.ones_like(mask) if published else mask
    total = score_mse(q, _each_head(ours), p, _each_head(goal), mask, (ours.scale, goal.scale), asking)
    return total / q.shape[1]


def _each_head(attention: Attention) -> Tensor:
    """[B, A, L, D]: grouped keys repeated, so that every query head has its own."""
    return torch.repeat_interleave(attention.key, attention.query.shape[1] // attention.key.shape[1], dim=1)


def _by_rows(fn: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """The sum of `fn(*tensors)` [] over pieces of the rows (first axis), each computed anew in the backward pass."""
    num_rows, heads, length = tensors[0].shape[:3]
    size = max(SCORES // (heads * length * length), 1)

    def run(*parts: Tensor) -> Tensor:
        return fn(*(wide(part) if part.is_floating_point() else part for part in parts))

    pieces = ([t[start : start + size] for t in tensors] for start in range(0, num_rows, size))
    return torch.stack(
        [checkpoint(run, *parts, use_reentrant=False, preserve_rng_state=False) for parts in pieces]
    ).sum()
