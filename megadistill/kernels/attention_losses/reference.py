"""What the attention losses are, in plain PyTorch with all scores.

Legend: B batch, A heads, L positions, D width of a student's head, E of a teacher's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def score_mse_reference(
    queries: Tensor, keys: Tensor, teacher_queries: Tensor, teacher_keys: Tensor, mask: Tensor
) -> Tensor:
    """See `score_mse`."""
    difference = _scores(queries, keys) - _scores(teacher_queries, teacher_keys)
    pairs = mask[:, None, :, None] & mask[:, None, None, :]
    return torch.where(pairs, difference.square(), 0).sum()


def relation_kl_reference(
    queries: Tensor,
    keys: Tensor,
    teacher_queries: Tensor,
    teacher_keys: Tensor,
    mask: Tensor,
    segments: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """See `relation_kl`."""
    seen = mask[:, None, :].expand(-1, mask.shape[1], -1)
    if segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None, :])
    if causal:
        seen = seen.tril()
    hidden = ~seen.unsqueeze(1)
    log_p, log_q = (
        _scores(q, k).masked_fill(hidden, -1e30).log_softmax(-1)
        for q, k in ((teacher_queries, teacher_keys), (queries, keys))
    )
    each = torch.where(hidden, 0, log_p.exp() * (log_p - log_q)).sum(-1)
    return (each * mask[:, None, :]).sum()


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    return queries @ keys.transpose(-1, -2) * queries.shape[-1] ** -0.5
