"""Squared difference of raw attention scores (TinyBERT, Jiao et al. 2020, equation 7) by its exact Gram form.

S_s - S_t = P R^T with P = [a Q_s, -b Q_t] and R = [K_s, K_t], rows of padding set to 0. So |S_s - S_t|^2 is the sum of
(P^T P) * (R^T R): O(L (D + E)^2) instead of O(L^2 D), and no [L, L] at all. Every attended query must see every
attended key: true for a bidirectional model with one document in a row, and for no other.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megadistill.kernels import dispatch
from megadistill.kernels.forward_gradient import with_gradient

CHUNK_VALUES = 1 << 22
"""fp64 values of P and R that exist at once."""


def score_mse(
    queries: Tensor,
    keys: Tensor,
    teacher_queries: Tensor,
    teacher_keys: Tensor,
    mask: Tensor,
    scales: tuple[float, float] | None = None,
    asking: Tensor | None = None,
) -> Tensor:
    """Sum over sequences, heads and attended pairs of (student score - teacher score)^2, before the softmax.

    Args:
        queries: [B, A, L, D]; `keys` likewise.
        teacher_queries: [B, A, L, E]; `teacher_keys` likewise; no gradient flows into them.
        mask: [B, L] bool, the attended positions.
        scales: what multiplies the student's and the teacher's products; None: D ** -0.5 and E ** -0.5.
        asking: [B, L] bool, the positions whose queries are compared, where they are not `mask`.

    Returns:
        [] fp32 (fp64 for fp64 input). Computed in fp64, because it cancels when the models agree.

    Raises:
        ValueError: shapes that do not fit.
    """
    check(queries, keys, teacher_queries, teacher_keys, mask)
    asking = mask if asking is None else asking
    ours, theirs = scales or default_scales(queries, teacher_queries)
    batch, heads, length, width = queries.shape

    def compute(needed: Sequence[bool]) -> tuple[Tensor, list[Tensor]]:
        gradients = [torch.empty_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in (queries, keys)]
        total = torch.zeros((), dtype=torch.float64, device=queries.device)
        size = max(CHUNK_VALUES // max(2 * heads * length * (width + teacher_queries.shape[-1]), 1), 1)
        for start in range(0, batch, size):
            part = slice(start, start + size)
            p = torch.cat([queries[part].double() * ours, teacher_queries[part].double() * -theirs], -1)
            p *= asking[part, None, :, None]
            r = torch.cat([keys[part].double(), teacher_keys[part].double()], -1) * mask[part, None, :, None]
            pp, rr = p.transpose(-1, -2) @ p, r.transpose(-1, -2) @ r
            total += (pp * rr).sum()
            if any(needed):
                gradients[0][part] = 2 * ours * (p @ rr[..., :width])
                gradients[1][part] = 2 * (r @ pp[..., :width])
        return total.to(gradients[0].dtype), gradients

    return with_gradient((queries, keys), compute)


def default_scales(queries: Tensor, teacher_queries: Tensor) -> tuple[float, float]:
    """D ** -0.5 of both."""
    return float(queries.shape[-1] ** -0.5), float(teacher_queries.shape[-1] ** -0.5)


def check(queries: Tensor, keys: Tensor, teacher_queries: Tensor, teacher_keys: Tensor, mask: Tensor) -> None:
    """Raises:
    ValueError: naming what does not fit.
    """
    if queries.ndim != 4:
        raise ValueError(f"queries must be [B, heads, L, width], not {list(queries.shape)}")
    for name, value, like in (
        ("keys", keys, queries),
        ("teacher_queries", teacher_queries[..., :0], queries[..., :0]),
        ("teacher_keys", teacher_keys, teacher_queries),
    ):
        if value.shape != like.shape:
            raise ValueError(
                f"{name} is {list(value.shape)}, and {list(like.shape)} was expected: [B, heads, L, width]"
            )
    if mask.dtype != torch.bool or mask.shape != (queries.shape[0], queries.shape[2]):
        raise ValueError(f"mask must be bool [B, L] = {[queries.shape[0], queries.shape[2]]}, not {list(mask.shape)}")
    sides = {"keys": keys, "teacher_queries": teacher_queries, "teacher_keys": teacher_keys}
    for name, value in {"queries": queries, **sides, "mask": mask}.items():
        dispatch.check_device(name, value, "queries", queries)
        if name != "mask" and not value.is_floating_point():
            raise ValueError(f"{name} must be float, not {value.dtype}")
