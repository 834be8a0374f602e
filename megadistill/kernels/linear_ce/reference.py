"""What linear_ce computes, in plain PyTorch with all logits."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_ce_reference(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """See `linear_ce`."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    return torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
