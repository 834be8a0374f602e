"""What the losses between hidden states are, in plain PyTorch with everything at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize


def hidden_losses_reference(
    kind: str, students: Sequence[Tensor], teachers: Sequence[Tensor], weights: Sequence[float], mask: Tensor
) -> Tensor:
    """See `hidden_losses`."""
    total = students[0].new_zeros((), dtype=torch.promote_types(students[0].dtype, torch.float32))
    for ours, theirs, weight in zip(students, teachers, weights, strict=True):
        s, t = ours.to(total.dtype), theirs.detach().to(total.dtype)
        if kind == "cosine":
            each = 1 - cosine_similarity(s, t, dim=-1)
        elif kind == "normalized":
            each = (normalize(s, dim=-1) - normalize(t, dim=-1)).square().sum(-1)
        else:
            each = (s - t).square().sum(-1)
        total = total + weight * torch.where(mask, each, 0).sum()
    return total
