"""linear_ce in bounded chunks, its gradient computed in the forward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from megadistill.kernels.chunks import HeadGradients, chunks, fp32_logits
from megadistill.kernels.linear_soft_ce.chunked import scaled


def linear_ce(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """The sum over rows of -log softmax(hidden @ weight.T + bias)[label], in nats.

    Args:
        hidden: [N, H].
        weight: [V, H]; `bias` [V] or None.
        labels: [N] int64, every one a real label.

    Returns:
        [] fp32 (fp64 for fp64 input); 0 connected to the graph when N = 0.
    """
    return _LinearCE.apply(hidden, weight, bias, labels)


class _LinearCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
        needed = ctx.needs_input_grad[:3]
        gradients = HeadGradients(hidden, weight, bias, needed)
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        for rows in chunks(hidden.shape[0], weight.shape[0], num_buffers=2):
            log_q = fp32_logits(hidden[rows], weight, bias).log_softmax(-1)
            label = labels[rows].unsqueeze(1)
            total -= log_q.gather(1, label).sum()
            if any(needed):
                gradient = log_q.exp_()
                gradient.scatter_add_(1, label, gradient.new_full((1, 1), -1.0).expand_as(label))
                gradients.add(rows, hidden, weight, gradient)
        ctx.gradients = gradients
        ctx.dtypes = (hidden.dtype, weight.dtype, None if bias is None else bias.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> Any:
        return (*scaled(ctx.gradients, upstream, ctx.dtypes), None)
