"""From hidden states to their loss, and to its gradient, in PyTorch: on any device, in any dtype, some rows at a time.

Legend: N positions, H width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

TILE = 1 << 18
"""Values of a state that are worked on at once, other than on a GPU: what is made of them stays in the cache."""

SHORTEST = 1e-12
"""A shorter state has no direction: it counts as zero, and no gradient flows into it through its norm."""


def loss(kind: str, ours: Sequence[Tensor], theirs: Sequence[Tensor], weights: Sequence[float], mask: Tensor) -> Tensor:
    """[] in fp32 (fp64 for fp64 states); see `hidden_losses`.

    Args:
        ours: [N, H] of each layer; `theirs` likewise.
        mask: [N] bool.
    """
    total = ours[0].new_zeros((), dtype=torch.promote_types(ours[0].dtype, torch.float32))
    for s, t, weight, rows in _tiles(ours, theirs, weights, total.dtype):
        if kind == "squares":
            each = _norm(s - t).square_()
        else:
            mine, other = _inverse_norm(s), _inverse_norm(t)
            each = _norm((s * mine).addcmul_(t, other, value=-1)).square_()
            if kind == "cosine":  # half the squared distance of unit vectors does not cancel
                each = torch.where((mine * other) == 0, 1, each / 2)
        total.add_(torch.where(mask[rows, None], each, 0).sum(), alpha=weight)
    return total


def gradients(
    kind: str,
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
    weights: Sequence[float],
    mask: Tensor,
    upstream: Tensor,
    found: Sequence[Tensor],
) -> None:
    """Fill `found`, [N, H] for each layer, with the gradient of `upstream` [] times the loss with respect to `ours`."""
    factors = [weight if kind == "cosine" else 2 * weight for weight in weights]
    tiles = _tiles(ours, theirs, list(zip(factors, found, strict=True)), upstream.dtype)
    for s, t, (factor, gradient), rows in tiles:
        if kind == "squares":
            torch.mul(s - t, upstream * factor, out=gradient[rows])
        else:  # of unit vectors' difference, the part that is no change of the student's length
            mine, other = _inverse_norm(s), _inverse_norm(t)
            unit = s * mine
            difference = torch.addcmul(unit, t, other, value=-1)
            along = (unit * difference).sum(-1, keepdim=True)
            torch.mul(difference.addcmul_(unit, along, value=-1), mine * (upstream * factor), out=gradient[rows])
        gradient[rows].masked_fill_(~mask[rows, None], 0)


def _tiles(
    ours: Sequence[Tensor], theirs: Sequence[Tensor], others: Sequence[Any], dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, Any, slice]]:
    """Of every layer, some rows of both models' states in `dtype`, what belongs to the layer, and which rows."""
    for s, t, other in zip(ours, theirs, others, strict=True):
        num_rows, width = s.shape
        size = max(num_rows if s.is_cuda else TILE // width, 1)
        for start in range(0, num_rows, size):
            rows = slice(start, min(start + size, num_rows))
            yield s[rows].to(dtype), t[rows].to(dtype), other, rows


def _norm(states: Tensor) -> Tensor:
    """[n, 1]"""
    return torch.linalg.vector_norm(states, dim=-1, keepdim=True)


def _inverse_norm(states: Tensor) -> Tensor:
    """[n, 1], 0 for states without a direction."""
    norm = _norm(states)
    return norm.masked_fill_(norm <= SHORTEST, torch.inf).reciprocal_()
