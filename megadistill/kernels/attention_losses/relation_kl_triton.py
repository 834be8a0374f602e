"""The relations' KL a tile of scores at a time, in Triton, as flash attention walks (Dao et al. 2022; 2023).

Forward, a program takes some queries and walks over the keys once: running maxima, sums of exponentials, and the sum of
exp(teacher's score) times the difference of scores give the KL; the two log-sum-exps of every query are kept, and
nothing else. Backward, scores are computed anew from them: dS = softmax(S_s) - softmax(S_t), dQ = dS K, dK = dS^T Q,
each summed by the one program that writes it, so results do not change from run to run.

Not run on a GPU yet: the tests run it in Triton's interpreter and compile it for sm_80 and sm_90; its speed is not
measured.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from megadistill.kernels.attention_losses import tiles
from megadistill.kernels.forward_gradient import refuse_twice

_LOG2_E = math.log2(math.e)
_LN_2 = tl.constexpr(math.log(2))


def flash_relation_kl(
    queries: Tensor,
    keys: Tensor,
    teacher_queries: Tensor,
    teacher_keys: Tensor,
    mask: Tensor,
    segments: Tensor | None,
    causal: bool,
    seen: Tensor | None,
    scales: tuple[float, float],
) -> Tensor:
    """As `relation_kl`, whose checks were passed; where `tiles.why_not` knows no reason."""
    dtype = torch.promote_types(queries.dtype, keys.dtype)
    theirs = torch.promote_types(teacher_queries.dtype, teacher_keys.dtype)
    sides = queries.to(dtype), keys.to(dtype), teacher_queries.detach().to(theirs), teacher_keys.detach().to(theirs)
    loss: Tensor = _Flash.apply(*sides, _Pattern(mask, segments, causal, seen), scales)
    return loss


class _Pattern:
    """Which query sees which key, as the kernels take it."""

    def __init__(self, mask: Tensor, segments: Tensor | None, causal: bool, seen: Tensor | None) -> None:
        self.mask, self.causal = mask.contiguous().view(torch.uint8), causal
        self.segments = None if segments is None else segments.contiguous()
        self.seen = None if seen is None else seen.view(torch.uint8)

    def arguments(self, from_keys: bool) -> dict[str, Any]:
        """Of a program that has queries and walks over keys, or the other way round."""
        b, q, k = (0, 0, 0) if self.seen is None else (self.seen.stride(0), self.seen.stride(2), self.seen.stride(3))
        return {
            "mask": self.mask,
            "segments": self.segments,
            "seen": self.seen,
            "seen_strides": (b, k, q) if from_keys else (b, q, k),
            "CAUSAL": (2 if from_keys else 1) if self.causal else 0,
        }


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, u: Tensor, v: Tensor, pattern: _Pattern, scales: tuple[float, float]
    ) -> Tensor:
        sums, losses = q.new_empty(2, *q.shape[:3], dtype=torch.float32), q.new_empty(q.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(q, k, u, v, sums)
        ctx.pattern, ctx.scales = pattern, scales
        _launch(_forward, (q, k, u, v), sums, pattern, scales, False, losses=losses)
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        refuse_twice("relation_kl")
        q, k, u, v, sums = ctx.saved_tensors
        found: list[Tensor | None] = []
        for from_keys, sides in enumerate(((q, k, u, v), (k, q, v, u))):
            gradient = None
            if ctx.needs_input_grad[from_keys]:
                gradient = torch.empty_like(sides[0], memory_format=torch.contiguous_format)
                options = {"upstream": upstream, "gradient": gradient, "scale": ctx.scales[0], "KEYS": bool(from_keys)}
                _launch(_backward, sides, sums, ctx.pattern, ctx.scales, bool(from_keys), **options)
            found.append(gradient)
        return *found, None, None, None, None


def _launch(
    kernel: Any,
    sides: tiles.Sides,
    sums: Tensor,
    pattern: _Pattern,
    scales: tuple[float, float],
    from_keys: bool,
    **options: Any,
) -> None:
    """One program for some rows of `sides[0]` and `sides[2]`, which walks over those of `sides[1]` and `sides[3]`."""
    batch, heads, length, width = sides[0].shape
    teacher_width = sides[2].shape[-1]
    block = tiles.chosen(sides)
    num_programs = batch * heads * triton.cdiv(length, block)
    if num_programs == 0:
        return
    kernel[(num_programs,)](
        sides=sides,
        strides=tuple(side.stride() for side in sides),
        sums=sums,
        heads=heads,
        length=length,
        width=width,
        teacher_width=teacher_width,
        our_scale=scales[0] * _LOG2_E,
        their_scale=scales[1] * _LOG2_E,
        num_sums=batch * heads * length,
        **pattern.arguments(from_keys),
        **options,
        BLOCK=block,
        D=tiles.padded(width),
        E=tiles.padded(teacher_width),
        num_warps=4,
        num_stages=2,
    )


@triton.jit
def _place(length, heads, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of this program: sequence, head, both together, and its first row; int64, since products pass 2^31."""
    index = tl.program_id(0).to(tl.int64)
    blocks = tl.cdiv(length, BLOCK)
    pair = index // blocks
    return pair // heads, pair % heads, pair, (index % blocks) * BLOCK


@triton.jit
def _rows(pointer, strides, batch, head, rows, attended, width, WIDTH: tl.constexpr):  # type: ignore[no-untyped-def]
    """[BLOCK, WIDTH], 0 at padding, which is not read."""
    columns = tl.arange(0, WIDTH)
    pointer += batch * strides[0] + head * strides[1]
    offsets = rows[:, None] * strides[2] + columns[None, :] * strides[3]
    return tl.load(pointer + offsets, mask=attended[:, None] & (columns < width)[None, :], other=0.0)


@triton.jit
def _attended(mask, batch, rows, length):  # type: ignore[no-untyped-def]
    return tl.load(mask + batch * length + rows, mask=rows < length, other=0) != 0


@triton.jit
def _visible(  # type: ignore[no-untyped-def]
    segments,
    seen,
    seen_strides,
    batch,
    rows,
    others,
    here,
    there,
    length,
    CAUSAL: tl.constexpr,
):
    """[rows, others] whether the query of a pair is attended and sees the key."""
    pairs = here[:, None] & there[None, :]
    if CAUSAL == 1:
        pairs = pairs & (rows[:, None] >= others[None, :])
    if CAUSAL == 2:
        pairs = pairs & (rows[:, None] <= others[None, :])
    if segments is not None:
        mine = tl.load(segments + batch * length + rows, mask=here, other=0)
        theirs = tl.load(segments + batch * length + others, mask=there, other=0)
        pairs = pairs & (mine[:, None] == theirs[None, :])
    if seen is not None:
        offsets = batch * seen_strides[0] + rows[:, None] * seen_strides[1] + others[None, :] * seen_strides[2]
        pairs = pairs & (tl.load(seen + offsets, mask=pairs, other=0) != 0)
    return pairs


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    sides,
    strides,
    sums,
    losses,
    mask,
    segments,
    seen,
    seen_strides,
    heads,
    length,
    width,
    teacher_width,
    our_scale,
    their_scale,
    num_sums,
    CAUSAL: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
):
    batch, head, pair, first = _place(length, heads, BLOCK)
    lanes = tl.arange(0, BLOCK)
    rows = first + lanes
    here = _attended(mask, batch, rows, length)
    q_tile = _rows(sides[0], strides[0], batch, head, rows, here, width, D)
    u_tile = _rows(sides[2], strides[2], batch, head, rows, here, teacher_width, E)
    our_max = tl.full((BLOCK,), -float("inf"), tl.float32)
    their_max = tl.full((BLOCK,), -float("inf"), tl.float32)
    our_sum = tl.zeros((BLOCK,), tl.float32)
    their_sum = tl.zeros((BLOCK,), tl.float32)
    product = tl.zeros((BLOCK,), tl.float32)  # of exp(teacher's score) and the difference of scores
    end = length
    if CAUSAL:
        end = tl.minimum(length, first + BLOCK)
    for start in range(0, end, BLOCK):
        others = (start + lanes).to(tl.int64)
        there = _attended(mask, batch, others, length)
        pairs = _visible(segments, seen, seen_strides, batch, rows, others, here, there, length, CAUSAL)
        k_tile = _rows(sides[1], strides[1], batch, head, others, there, width, D)
        v_tile = _rows(sides[3], strides[3], batch, head, others, there, teacher_width, E)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * our_scale
        t = tl.dot(u_tile, tl.trans(v_tile), input_precision="ieee") * their_scale
        new_max = tl.maximum(our_max, tl.max(tl.where(pairs, s, -float("inf")), 1))
        shift = tl.where(new_max == -float("inf"), 0.0, new_max)  # a query that has seen nothing yet
        our_sum = our_sum * tl.exp2(our_max - shift) + tl.sum(tl.where(pairs, tl.exp2(s - shift[:, None]), 0.0), 1)
        our_max = new_max
        new_max = tl.maximum(their_max, tl.max(tl.where(pairs, t, -float("inf")), 1))
        shift = tl.where(new_max == -float("inf"), 0.0, new_max)
        decay = tl.exp2(their_max - shift)
        p = tl.where(pairs, tl.exp2(t - shift[:, None]), 0.0)
        their_sum = their_sum * decay + tl.sum(p, 1)
        product = product * decay + tl.sum(p * tl.where(pairs, t - s, 0.0), 1)
        their_max = new_max
    sees = their_sum > 0
    ours = tl.where(sees, our_max + tl.log2(tl.where(sees, our_sum, 1.0)), 0.0)
    theirs = tl.where(sees, their_max + tl.log2(tl.where(sees, their_sum, 1.0)), 0.0)
    loss = tl.where(sees, product / tl.where(sees, their_sum, 1.0) + ours - theirs, 0.0)
    at = pair * length + rows
    tl.store(losses + at, loss * _LN_2, mask=rows < length)
    tl.store(sums + at, ours, mask=rows < length)
    tl.store(sums + num_sums + at, theirs, mask=rows < length)


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    sides,
    strides,
    sums,
    upstream,
    gradient,
    mask,
    segments,
    seen,
    seen_strides,
    heads,
    length,
    width,
    teacher_width,
    scale,
    our_scale,
    their_scale,
    num_sums,
    KEYS: tl.constexpr,
    CAUSAL: tl.constexpr,
    BLOCK: tl.constexpr,
    D: tl.constexpr,
    E: tl.constexpr,
):
    """The gradient of the first side's rows: of queries, or with KEYS of keys, with the queries as the second."""
    batch, head, pair, first = _place(length, heads, BLOCK)
    lanes = tl.arange(0, BLOCK)
    rows = first + lanes
    here = _attended(mask, batch, rows, length)
    q_tile = _rows(sides[0], strides[0], batch, head, rows, here, width, D)
    u_tile = _rows(sides[2], strides[2], batch, head, rows, here, teacher_width, E)
    sums += pair * length
    if not KEYS:
        ours = tl.load(sums + rows, mask=here, other=0.0)[:, None]
        theirs = tl.load(sums + num_sums + rows, mask=here, other=0.0)[:, None]
    total = tl.zeros((BLOCK, D), tl.float32)
    begin = 0
    end = length
    if CAUSAL == 1:
        end = tl.minimum(length, first + BLOCK)
    if CAUSAL == 2:
        begin = first
    for start in range(begin, end, BLOCK):
        others = (start + lanes).to(tl.int64)
        there = _attended(mask, batch, others, length)
        pairs = _visible(segments, seen, seen_strides, batch, rows, others, here, there, length, CAUSAL)
        if KEYS:
            ours = tl.load(sums + others, mask=there, other=0.0)[None, :]
            theirs = tl.load(sums + num_sums + others, mask=there, other=0.0)[None, :]
        k_tile = _rows(sides[1], strides[1], batch, head, others, there, width, D)
        v_tile = _rows(sides[3], strides[3], batch, head, others, there, teacher_width, E)
        s = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * our_scale
        t = tl.dot(u_tile, tl.trans(v_tile), input_precision="ieee") * their_scale
        ds = tl.where(pairs, tl.exp2(s - ours) - tl.exp2(t - theirs), 0.0)
        total += tl.dot(ds.to(k_tile.dtype), k_tile, input_precision="ieee")
    columns = tl.arange(0, D)
    total *= scale * tl.load(upstream).to(tl.float32)
    at = (pair * length + rows)[:, None] * width + columns[None, :]
    inside = (rows < length)[:, None] & (columns < width)[None, :]
    tl.store(gradient + at, total.to(gradient.dtype.element_ty), mask=inside)
