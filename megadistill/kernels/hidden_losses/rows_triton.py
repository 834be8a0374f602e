"""From hidden states to their loss, and to its gradient, in one Triton launch for all layers.

One program holds one position: the states of a layer of both models, one layer after another. Each state is read once,
whatever the loss; in bf16 the loss reads 4 bytes a value and the gradient moves 6. All arithmetic is fp32.

Not run on a GPU yet: the tests run it in Triton's interpreter and compile it for sm_90; its speed is not measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from megadistill.kernels.hidden_losses import rows_torch

_SHORTEST = tl.constexpr(rows_torch.SHORTEST)


def loss(kind: str, ours: Sequence[Tensor], theirs: Sequence[Tensor], weights: Sequence[float], mask: Tensor) -> Tensor:
    """As `rows_torch.loss`."""
    losses = torch.empty(mask.shape, dtype=torch.float32, device=mask.device)
    _launch(kind, ours, theirs, weights, mask, losses, losses, ())
    return losses.sum()


def gradients(
    kind: str,
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
    weights: Sequence[float],
    mask: Tensor,
    upstream: Tensor,
    found: Sequence[Tensor],
) -> None:
    """As `rows_torch.gradients`; `found` contiguous."""
    _launch(kind, ours, theirs, weights, mask, upstream, upstream, tuple(found))


def _launch(
    kind: str,
    ours: Sequence[Tensor],
    theirs: Sequence[Tensor],
    weights: Sequence[float],
    mask: Tensor,
    upstream: Tensor,
    losses: Tensor,
    found: tuple[Tensor, ...],
) -> None:
    num_rows, width = ours[0].shape
    if num_rows == 0:
        return
    sides: Any = [tuple(t if t.stride(1) == 1 else t.contiguous() for t in side) for side in (ours, theirs)]
    block = triton.next_power_of_2(max(width, 1))
    _kernel[(num_rows,)](
        *sides,
        *(tuple(t.stride(0) for t in side) for side in sides),
        found or sides[0],
        tuple(weights),
        mask.contiguous().view(torch.uint8),  # it may be a view of every row's first position
        upstream,
        losses,
        width,
        LAYERS=len(ours),
        NORMALIZED=kind != "squares",
        COSINE=kind == "cosine",
        GRADIENT=bool(found),
        BLOCK=block,
        num_warps=min(max(block // 512, 1), 16),
    )


@triton.jit
def _inverse_norm(state):  # type: ignore[no-untyped-def]
    norm = tl.sqrt(tl.sum(state * state, 0))
    return tl.where(norm > _SHORTEST, 1 / tl.maximum(norm, _SHORTEST), 0.0)


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    ours,
    theirs,
    our_strides,
    their_strides,
    gradients,
    weights,
    mask,
    upstream,
    losses,
    width,
    LAYERS: tl.constexpr,
    NORMALIZED: tl.constexpr,
    COSINE: tl.constexpr,
    GRADIENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # row * stride passes 2^31
    columns = tl.arange(0, BLOCK)
    attended = tl.load(mask + row) != 0
    inside = (columns < width) & attended
    factor = 1.0
    if GRADIENT:
        factor = tl.load(upstream).to(tl.float32)
        if not COSINE:
            factor *= 2
    total = 0.0
    for layer in tl.static_range(LAYERS):
        s = tl.load(ours[layer] + row * our_strides[layer] + columns, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(theirs[layer] + row * their_strides[layer] + columns, mask=inside, other=0.0).to(tl.float32)
        inverse = 1.0
        other = 1.0
        if NORMALIZED:
            inverse = _inverse_norm(s)
            other = _inverse_norm(t)
            s = s * inverse
            t = t * other
        difference = s - t
        if GRADIENT:
            if NORMALIZED:
                difference = (difference - s * tl.sum(s * difference, 0)) * inverse
            value = (weights[layer] * factor * difference).to(gradients[layer].dtype.element_ty)
            tl.store(gradients[layer] + row * width + columns, value, mask=columns < width)
        else:
            one = tl.sum(difference * difference, 0)
            if COSINE:  # half the squared distance of unit vectors does not cancel
                one = tl.where((inverse == 0) | (other == 0), 1.0, 0.5 * one)
            total += weights[layer] * one
    if not GRADIENT:
        tl.store(losses + row, tl.where(attended, total, 0.0))
