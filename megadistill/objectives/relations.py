"""How losses over [heads, L, L] matrices stay small in memory, and what a relation between positions is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from megadistill.objectives.base import wide

WORKSPACE_MIB = 256
"""Memory for one chunk's [rows, heads, L, L] matrices, all of them together."""


def by_rows(fn: Callable[..., Tensor], *tensors: Tensor, num_buffers: int = 6) -> Tensor:
    """`fn(*tensors)` [B], computed for some rows (first axis) at a time, and again in the backward pass.

    Args:
        fn: of tensors [b, ...], floating ones in fp32 at least, to [b].
        tensors: [B, A, L, D], or bool [B, 1, L, L].
        num_buffers: [b, A, L, L] matrices that `fn` holds at once.
    """
    num_rows, heads, length = tensors[0].shape[:3]
    size = max(WORKSPACE_MIB * 2**20 // (4 * heads * length * length * num_buffers), 1)

    def run(*parts: Tensor) -> Tensor:
        return fn(*(wide(part) if part.is_floating_point() else part for part in parts))

    sums = []
    for start in range(0, num_rows, size):
        parts = [t[start : start + size] for t in tensors]
        sums.append(checkpoint(run, *parts, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(sums)


def regrouped(values: Tensor, heads: int) -> Tensor:
    """[B, A, L, D] -> [B, heads, L, A D / heads]: the heads laid side by side and cut anew (MiniLMv2, section 3.2)."""
    num_rows, a, length, d = values.shape
    flat = values.transpose(1, 2).reshape(num_rows, length, a * d)
    return flat.view(num_rows, length, heads, -1).transpose(1, 2)


def relation_kl(
    ours: tuple[Tensor, Tensor], goal: tuple[Tensor, Tensor], seen: Tensor, scales: tuple[float, float]
) -> Tensor:
    """[b] KL(goal || ours) of softmax(a b' scale) over the seen keys: mean over heads, sum over queries that see any.

    Args:
        ours: (queries, keys), each [b, heads, L, D]; `goal` likewise, of any D.
        seen: [b, 1, L, L] bool.
        scales: what multiplies our and the goal's products.
    """
    blocked = ~seen

    def log_weights(pair: tuple[Tensor, Tensor], scale: float) -> Tensor:
        scores = scale * (pair[0] @ pair[1].transpose(-1, -2))
        return scores.masked_fill(blocked, torch.finfo(scores.dtype).min).log_softmax(-1)

    log_q, log_p = log_weights(ours, scales[0]), log_weights(goal, scales[1])
    kl = (log_p.exp() * (log_p - log_q)).masked_fill(blocked, 0).sum(-1)
    return kl.mean(1).sum(-1)
