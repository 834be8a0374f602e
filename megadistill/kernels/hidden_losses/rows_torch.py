"""From hidden states to their loss, and to its gradient, in PyTorch: on any device, in any dtype, some rows at a time.

Legend: N positions, H width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

TILE = 1 << 18
"""Values of a state that a CPU works on at once: what it makes of them stays in the cache."""

SHORTEST = 1e-12
"""A shorter state has no direction: it counts as zero, and no gradient flows into it through its norm."""


def loss(kind: str, ours: Sequence[Tensor], theirs: Sequence[Tensor], weights: Sequence[float], mask: Tensor) -> Tensor:
    """[] in fp32 (fp64 for fp64 states); see `hidden_losses`.

    Args:
        ours: [N, H] of each layer; `theirs` likewise.
        mask: [N] bool.
    """
    total = mask.new_zeros((), dtype=torch.promote_types(ours[0].dtype, torch.float32))
    for s, t, weight in zip(ours, theirs, weights, strict=True):
        for rows in _tiles(s):
            difference, _, empty = _difference(kind, s[rows], t[rows], mask[rows], total.dtype)
            squares = difference.square_().sum(-1)
            if kind == "cosine":  # half the squared distance of unit vectors; more where there is none to compare
                squares = (squares + empty * mask[rows]) / 2
            total += weight * squares.sum()
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
    for s, t, weight, gradient in zip(ours, theirs, weights, found, strict=True):
        factor = upstream * (weight if kind == "cosine" else 2 * weight)
        for rows in _tiles(s):
            difference, inverse, _ = _difference(kind, s[rows], t[rows], mask[rows], factor.dtype)
            if inverse is None:
                torch.mul(difference, factor, out=gradient[rows])
                continue
            unit = (s[rows] * inverse).masked_fill_(~mask[rows, None], 0)
            along = (unit * difference).sum(-1, keepdim=True)
            scale = (inverse * factor).masked_fill_(~mask[rows, None], 0)
            torch.mul(difference.addcmul_(unit, along, value=-1), scale, out=gradient[rows])


def _tiles(states: Tensor) -> Iterator[slice]:
    num_rows = states.shape[0]
    size = max(TILE // max(states.shape[1], 1), 1) if states.device.type == "cpu" else max(num_rows, 1)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def _difference(
    kind: str, s: Tensor, t: Tensor, mask: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """[n, H] student minus teacher, of unit vectors unless `squares`, 0 where the mask is; then also [n, 1] one over
    the student's norm, and [n] how many of the two have no direction."""
    s, t = s.to(dtype), t.to(dtype)
    if kind == "squares":
        return (s - t).masked_fill_(~mask[:, None], 0), None, None
    ours, theirs = _inverse_norm(s), _inverse_norm(t)
    difference = (s * ours).addcmul_(t, theirs, value=-1).masked_fill_(~mask[:, None], 0)
    return difference, ours, ((ours == 0).to(dtype) + (theirs == 0)).squeeze(1)


def _inverse_norm(states: Tensor) -> Tensor:
    """[n, 1], 0 for states without a direction."""
    norm = torch.linalg.vector_norm(states, dim=-1, keepdim=True)
    return torch.where(norm > SHORTEST, norm.reciprocal(), 0)
