"""linear_soft_ce in bounded chunks: the gradient is computed in the forward pass, while a chunk's logits are there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megadistill.kernels.chunks import HeadGradients, chunks, fp32_logits


def linear_soft_ce(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    temperature: float = 1.0,
) -> Tensor:
    """The sum over rows of T^2 * KL(teacher || student), in nats.

    Args:
        hidden: [N, H] student states, `weight` [V, H] and `bias` [V] its head.
        teacher_hidden: [N, Ht], `teacher_weight` [Vt, Ht], `teacher_bias` [Vt]; no gradient flows into them.
            Vt may exceed V: entries past V (a padded vocabulary) are left out of the teacher's distribution.
        temperature: T, divides both models' logits.

    Returns:
        [] fp32 (fp64 for fp64 input); 0 connected to the graph when N = 0.
    """
    size = weight.shape[0]
    return _LinearSoftCE.apply(
        hidden,
        weight,
        bias,
        teacher_hidden,
        teacher_weight[:size],
        None if teacher_bias is None else teacher_bias[:size],
        temperature,
    )


class _LinearSoftCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        teacher_hidden: Tensor,
        teacher_weight: Tensor,
        teacher_bias: Tensor | None,
        temperature: float,
    ) -> Tensor:
        needed = ctx.needs_input_grad[:3]
        gradients = HeadGradients(hidden, weight, bias, needed)
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        for rows in chunks(hidden.shape[0], weight.shape[0], num_buffers=4):
            log_p = fp32_logits(teacher_hidden[rows], teacher_weight, teacher_bias).div_(temperature)
            log_p = log_p.log_softmax(-1).to(total.dtype)
            log_q = fp32_logits(hidden[rows], weight, bias).div_(temperature).log_softmax(-1)
            p = log_p.exp()
            total += p.mul(log_p.sub_(log_q)).sum()
            if any(needed):
                gradients.add(rows, hidden, weight, log_q.exp_().sub_(p).mul_(temperature))
        ctx.gradients = gradients
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total.mul_(temperature**2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return (*scaled(ctx.gradients, upstream, ctx.dtypes), None, None, None, None)


def scaled(gradients: HeadGradients, upstream: Tensor, dtypes: tuple[Any, ...]) -> list[Tensor | None]:
    """The stored gradients times the upstream scalar, in their parameters' dtypes."""
    parts = (gradients.hidden, gradients.weight, gradients.bias)
    return [None if g is None else (g * upstream).to(dtype) for g, dtype in zip(parts, dtypes, strict=True)]
