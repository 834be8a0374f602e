"""From a block of logits to each row's losses and their gradient, in one Triton launch for a hard and a soft term.

One program walks over one row: a first time for the statistics of the softmaxes, then in reverse order for the
gradient, so that what was read last comes from the cache. All arithmetic is fp32; exponentials are powers of two.

Not run on a GPU yet: the tests run it in Triton's interpreter and compile it for sm_90; its speed is not measured.
"""

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from megadistill.kernels.head_losses.rows_torch import Block
from megadistill.kernels.head_losses.terms import Hard, Soft, decode, launches

BLOCK = 4096
"""Values that a program holds at once; 32 K of them spill, three times slower (Fast-LLM, pull request 497)."""
WARPS = 8

_KINDS = {"forward_kl": 1, "reverse_kl": 2, "jsd": 3}
_LOG2_E = tl.constexpr(math.log2(math.e))
_LN_2 = tl.constexpr(math.log(2))


def rows(block: Block) -> None:
    """In place only where there is one launch; without `top_k`."""
    z, u, losses, coefficients = block.z, block.u, block.losses, block.coefficients
    vocabulary = z.shape[1]
    size = min(BLOCK, triton.next_power_of_2(vocabulary))
    width = _width(vocabulary, [t for t in (z, u, block.gradient, block.z_bias, block.u_bias) if t is not None])
    for number, (hard_at, soft_at) in enumerate(launches(block.terms)):
        hard, soft = _parts(block.terms, hard_at, soft_at)
        t = 1.0 if soft is None else soft.temperature
        _kernel[(z.shape[0],)](
            z,
            u if soft else z,
            block.gradient,
            z if block.z_bias is None else block.z_bias,
            z if block.u_bias is None else block.u_bias,
            block.labels if hard else z,
            coefficients[hard_at] if hard else z,
            coefficients[soft_at] if soft else z,
            losses[hard_at] if hard else z,
            losses[soft_at] if soft else z,
            z.stride(0),
            u.stride(0) if u is not None else 0,
            block.gradient.stride(0),
            vocabulary,
            width,
            1 / t,
            t,
            hard.smoothing if hard else 0.0,
            soft.beta if soft else 0.5,
            HARD=hard is not None,
            SMOOTH=hard is not None and hard.smoothing > 0,
            SOFT=_KINDS[soft.divergence] if soft else 0,
            T=int(t) if t in (1, 2) else 0,
            Z_BIAS=block.z_bias is not None,
            U_BIAS=block.u_bias is not None,
            ADD=number > 0,
            BLOCK=size,
            num_warps=WARPS if size >= 2048 else 4,
        )


def _width(vocabulary: int, tensors: list[Tensor]) -> int:
    """How many values of a row may be touched: up to a multiple of 16 where every row has room for them, since the
    compiler makes 16-byte accesses only where no mask can cut one."""
    width = -(-vocabulary // 16) * 16
    for tensor in tensors:
        step = tensor.stride(0) if tensor.ndim == 2 else 0
        last = tensor.storage_offset() + (tensor.shape[0] - 1) * step + width
        if (step and step < width) or last > tensor.untyped_storage().nbytes() // tensor.element_size():
            return vocabulary
    return width


def _parts(terms: str, hard_at: int, soft_at: int) -> tuple[Hard | None, Soft | None]:
    decoded: Any = decode(terms)
    return (decoded[hard_at] if hard_at >= 0 else None), (decoded[soft_at] if soft_at >= 0 else None)


@triton.jit
def _load(pointer, bias, columns, vocabulary, width, HAS_BIAS: tl.constexpr):  # type: ignore[no-untyped-def]
    value = tl.load(pointer + columns, mask=columns < width, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + columns, mask=columns < width, other=0.0).to(tl.float32)
    return tl.where(columns < vocabulary, value, -float("inf"))


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    z_ptr,
    u_ptr,
    g_ptr,
    z_bias,
    u_bias,
    labels,
    hard_coefficients,
    soft_coefficients,
    hard_losses,
    soft_losses,
    z_stride,
    u_stride,
    g_stride,
    vocabulary,
    width,
    inverse_t,
    t,
    smoothing,
    beta,
    HARD: tl.constexpr,
    SMOOTH: tl.constexpr,
    SOFT: tl.constexpr,
    T: tl.constexpr,
    Z_BIAS: tl.constexpr,
    U_BIAS: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)  # row * stride passes 2^31
    z_ptr += row * z_stride
    u_ptr += row * u_stride
    g_ptr += row * g_stride
    lanes = tl.arange(0, BLOCK)
    num_blocks = tl.cdiv(vocabulary, BLOCK)
    one = _LOG2_E
    soft = inverse_t * _LOG2_E  # exponents of softened logits, in powers of two

    label = 0
    if HARD:
        label = tl.maximum(tl.load(labels + row), 0)
        z_label = tl.load(z_ptr + label).to(tl.float32)
        if Z_BIAS:
            z_label += tl.load(z_bias + label).to(tl.float32)
    tl.debug_barrier()  # the gradient may overwrite the label's logit

    # first pass: maxima and sums of exponentials, rescaled as the maximum grows
    z_max = -float("inf")
    u_max = -float("inf")
    z_one = 0.0
    z_soft = 0.0
    u_soft = 0.0
    z_sum = 0.0
    product = 0.0  # of exp(z / T) and z - u
    for block in range(0, num_blocks):
        columns = block * BLOCK + lanes
        inside = columns < vocabulary
        z = _load(z_ptr, z_bias, columns, vocabulary, width, Z_BIAS)
        new_max = tl.maximum(z_max, tl.max(z, 0))
        shift = z_max - new_max
        z_max = new_max
        if SMOOTH:
            z_sum += tl.sum(tl.where(inside, z, 0.0), 0)
        if T == 2 and HARD:
            root = tl.exp2((z - z_max) * soft)
            z_soft = z_soft * tl.exp2(shift * soft) + tl.sum(root, 0)
            z_one = z_one * tl.exp2(shift * one) + tl.sum(root * root, 0)
        else:
            if HARD:
                z_one = z_one * tl.exp2(shift * one) + tl.sum(tl.exp2((z - z_max) * one), 0)
            if SOFT > 0:
                if T == 1 and HARD:
                    z_soft = z_one
                else:
                    z_soft = z_soft * tl.exp2(shift * soft) + tl.sum(tl.exp2((z - z_max) * soft), 0)
        if SOFT > 0:
            u = _load(u_ptr, u_bias, columns, vocabulary, width, U_BIAS)
            new_max = tl.maximum(u_max, tl.max(u, 0))
            u_soft = u_soft * tl.exp2((u_max - new_max) * soft) + tl.sum(tl.exp2((u - new_max) * soft), 0)
            u_max = new_max
            if SOFT == 2:
                weighed = tl.where(inside, tl.exp2((z - z_max) * soft) * (z - u), 0.0)
                product = product * tl.exp2(shift * soft) + tl.sum(weighed, 0)

    q_scale = 0.0
    p_scale = 0.0
    if SOFT > 0:
        q_scale = tl.log2(z_soft)  # log2 q = (z - z_max) * soft - q_scale
        p_scale = tl.log2(u_soft)
    mean = 0.0  # over q, of log2 of the ratio that reverse_kl and jsd weigh
    loss = 0.0
    if SOFT == 2:
        mean = (product / z_soft - z_max + u_max) * soft - q_scale + p_scale
        loss = mean
    log_beta = tl.log2(beta)
    log_rest = tl.log2(1 - beta)
    if SOFT == 3:
        forward = 0.0
        for block in range(0, num_blocks):
            columns = block * BLOCK + lanes
            inside = columns < vocabulary
            log_q = (_load(z_ptr, z_bias, columns, vocabulary, width, Z_BIAS) - z_max) * soft - q_scale
            log_p = (_load(u_ptr, u_bias, columns, vocabulary, width, U_BIAS) - u_max) * soft - p_scale
            first = log_p + log_beta
            second = log_q + log_rest
            log_m = tl.maximum(first, second) + tl.log2(1 + tl.exp2(-tl.abs(first - second)))
            mean += tl.sum(tl.where(inside, tl.exp2(log_q) * (log_q - log_m), 0.0), 0)
            forward += tl.sum(tl.where(inside, tl.exp2(log_p) * (log_p - log_m), 0.0), 0)
        loss = beta * forward + (1 - beta) * mean

    hard_coefficient = 0.0
    soft_coefficient = 0.0
    hard_scale = 0.0
    if HARD:
        log_z_one = tl.log2(z_one)
        total = z_max + log_z_one * _LN_2  # log-sum-exp of z
        hard_loss = (1 - smoothing) * (total - z_label)
        if SMOOTH:
            hard_loss += smoothing * (total - z_sum / vocabulary)
        tl.store(hard_losses + row, hard_loss)
        hard_coefficient = tl.load(hard_coefficients + row).to(tl.float32)
        hard_scale = hard_coefficient / z_one
    if SOFT > 0:
        soft_coefficient = tl.load(soft_coefficients + row).to(tl.float32) * t
        if SOFT == 3:
            soft_coefficient *= 1 - beta

    # second pass, backwards
    for index in range(0, num_blocks):
        columns = (num_blocks - 1 - index) * BLOCK + lanes
        inside = columns < vocabulary
        z = _load(z_ptr, z_bias, columns, vocabulary, width, Z_BIAS) - z_max
        gradient = tl.zeros((BLOCK,), tl.float32)
        if SOFT > 0:
            u = _load(u_ptr, u_bias, columns, vocabulary, width, U_BIAS) - u_max
            log_q = z * soft - q_scale
            log_p = u * soft - p_scale
            q = tl.exp2(log_q)
            if SOFT == 1:
                p = tl.exp2(log_p)
                loss += tl.sum(tl.where(inside, p * (log_p - log_q), 0.0), 0)
                gradient += soft_coefficient * (q - p)
            else:
                ratio = log_q - log_p
                if SOFT == 3:
                    first = log_p + log_beta
                    second = log_q + log_rest
                    ratio = log_q - tl.maximum(first, second) - tl.log2(1 + tl.exp2(-tl.abs(first - second)))
                gradient += soft_coefficient * q * (ratio - mean) * _LN_2
        if HARD:
            if T == 2 and SOFT > 0:
                root = q * z_soft
                gradient += hard_scale * root * root
            else:
                gradient += hard_scale * tl.exp2(z * one)
            if SMOOTH:
                gradient -= hard_coefficient * smoothing / vocabulary
            gradient -= tl.where(columns == label, hard_coefficient * (1 - smoothing), 0.0)
        if ADD:
            gradient += tl.load(g_ptr + columns, mask=columns < width, other=0.0).to(tl.float32)
        tl.store(g_ptr + columns, tl.where(inside, gradient, 0.0), mask=columns < width)
    if SOFT > 0:
        tl.store(soft_losses + row, loss * _LN_2 * t * t)
