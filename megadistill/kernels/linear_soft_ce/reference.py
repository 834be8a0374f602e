"""What linear_soft_ce computes, in plain PyTorch with all logits: the definition the faster ones are tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def linear_soft_ce_reference(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    temperature: float,
) -> Tensor:
    """See `linear_soft_ce`."""
    student = torch.nn.functional.linear(hidden, weight, bias) / temperature
    teacher = torch.nn.functional.linear(teacher_hidden, teacher_weight, teacher_bias) / temperature
    log_p, log_q = teacher.log_softmax(-1), student.log_softmax(-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum()
