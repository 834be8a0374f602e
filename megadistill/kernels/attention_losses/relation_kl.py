"""KL between two models' relations, softmax(Q K^T / sqrt(D)), a block of query rows at a time.

MiniLM (Wang et al. 2020, equations 6 and 8: attention, and values among themselves) and MiniLMv2 (Wang et al. 2021,
equation 5: queries, keys and values among themselves). A row of a relation needs all keys but no other row, so blocks
of rows serve as flash attention's tiles do; the gradient dS = A_s - A_t is formed in the forward pass and nothing of
[L, L] size is kept. On a GPU tiles in Triton do it (`relation_kl_triton`), which keep two numbers a query.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megadistill.kernels import dispatch
from megadistill.kernels.attention_losses import tiles
from megadistill.kernels.attention_losses.score_mse import check, default_scales
from megadistill.kernels.forward_gradient import with_gradient

BLOCK_VALUES = 1 << 22
"""Scores of each model that exist at once."""


def relation_kl(
    queries: Tensor,
    keys: Tensor,
    teacher_queries: Tensor,
    teacher_keys: Tensor,
    mask: Tensor,
    segments: Tensor | None = None,
    causal: bool = False,
    seen: Tensor | None = None,
    scales: tuple[float, float] | None = None,
) -> Tensor:
    """Sum over sequences, heads and attended queries of KL(teacher's row || student's row), in nats.

    Args:
        queries: [B, A, L, D]; `keys` likewise. For relations of values among themselves both are the values.
        teacher_queries: [B, A, L, E]; `teacher_keys` likewise; no gradient flows into them. Where models have other
            numbers of heads, reshape both to the same number of relation heads first, as MiniLMv2 does.
        mask: [B, L] bool, the attended positions.
        segments: [B, L] document of each position; a query sees only keys of its own. None: one document in a row.
        causal: a query sees no later key.
        seen: [B, 1, L, L] bool, for any other pattern: which keys a query sees at most.
        scales: what multiplies the student's and the teacher's products; None: D ** -0.5 and E ** -0.5.

    Returns:
        [] fp32 (fp64 for fp64 input).

    Raises:
        ValueError: shapes that do not fit.
    """
    check(queries, keys, teacher_queries, teacher_keys, mask)
    if segments is not None and segments.shape != mask.shape:
        raise ValueError(f"segments must be {list(mask.shape)}, not {list(segments.shape)}")
    if seen is not None and (seen.dtype != torch.bool or seen.shape != (len(mask), 1, mask.shape[1], mask.shape[1])):
        raise ValueError(f"seen must be bool [B, 1, L, L] of {list(mask.shape)}, not {seen.dtype} {list(seen.shape)}")
    for name, value in (("segments", segments), ("seen", seen)):
        if value is not None:
            dispatch.check_device(name, value, "queries", queries)
    scales = scales or default_scales(queries, teacher_queries)
    dtype = torch.promote_types(queries.dtype, teacher_queries.dtype)
    no_tiles = tiles.why_not((queries, keys, teacher_queries, teacher_keys))
    if dispatch.runs_triton("relation_kl", queries.device, dtype, no_tiles)[0]:
        from megadistill.kernels.attention_losses.relation_kl_triton import flash_relation_kl

        return flash_relation_kl(queries, keys, teacher_queries, teacher_keys, mask, segments, causal, seen, scales)
    scale, teacher_scale = scales
    batch, heads, length, _ = queries.shape
    wide = torch.promote_types(queries.dtype, torch.float32)
    places = torch.arange(length, device=queries.device)
    num_rows = min(max(BLOCK_VALUES // max(heads * length, 1), 1), length)
    num_sequences = max(BLOCK_VALUES // max(heads * length * length, 1), 1)

    def unseen(part: slice, rows: slice) -> Tensor:
        """[b, 1, rows, L] the keys that a query does not see."""
        hidden = ~mask[part, None, :].expand(-1, rows.stop - rows.start, -1)
        if segments is not None:
            hidden = hidden | (segments[part, rows, None] != segments[part, None, :])
        if causal:
            hidden = hidden | (places[rows, None] < places)
        hidden = hidden.unsqueeze(1)
        return hidden if seen is None else hidden | ~seen[part, :, rows]

    def compute(needed: Sequence[bool]) -> tuple[Tensor, list[Tensor]]:
        dq, dk = torch.empty_like(queries, dtype=wide), torch.zeros_like(keys, dtype=wide)
        total = torch.zeros((), dtype=wide, device=queries.device)
        for first in range(0, batch, num_sequences):
            part = slice(first, first + num_sequences)
            q, k, u, v = (t[part].to(wide) for t in (queries, keys, teacher_queries, teacher_keys))
            for start in range(0, length, num_rows):
                rows = slice(start, min(start + num_rows, length))
                hidden = unseen(part, rows)
                log_q = (q[:, :, rows] @ k.mT).mul_(scale).masked_fill_(hidden, -1e30).log_softmax(-1)
                log_p = (u[:, :, rows] @ v.mT).mul_(teacher_scale).masked_fill_(hidden, -1e30).log_softmax(-1)
                nothing = hidden | ~mask[part, None, rows, None]  # keys that nobody sees, rows of padding
                p = log_p.exp()
                total += (p * log_p.sub_(log_q)).masked_fill_(nothing, 0).sum()
                ds = log_q.exp_().sub_(p).masked_fill_(nothing, 0).mul_(scale)
                dq[part, :, rows] = ds @ k
                dk[part] += ds.mT @ q[:, :, rows]
        return total, [dq, dk]

    return with_gradient((queries, keys), compute)
