"""How a head loss walks over its rows so that [rows, vocabulary] logits never exist at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

WORKSPACE_MIB = 32
"""Memory for one chunk's logits, all buffers of the op together."""


def chunks(num_rows: int, vocabulary: int, num_buffers: int, workspace_mib: int = WORKSPACE_MIB) -> Iterator[slice]:
    """Slices of rows for which `num_buffers` fp32 [rows, vocabulary] buffers fit the workspace."""
    size = max(workspace_mib * 2**20 // (4 * vocabulary * num_buffers), 16)
    for start in range(0, num_rows, size):
        yield slice(start, min(start + size, num_rows))


def fp32_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """hidden [N, H] @ weight [V, H].T + bias, accumulated and returned in fp32.

    The difference of two nearly equal distributions cancels: bf16 logits lose it (relative gradient error 7e-2
    where fp32 logits have 2e-3), so the product leaves the matrix unit in fp32.
    """
    if hidden.dtype == torch.float32 or hidden.dtype == torch.float64:
        logits = hidden @ weight.T.to(hidden.dtype)
    elif hidden.is_cuda:
        logits = torch.mm(hidden, weight.T.to(hidden.dtype), out_dtype=torch.float32)
    else:  # few CPUs multiply bf16 natively; the others are several times slower than in fp32
        logits = hidden.float() @ weight.T.float()
    return logits if bias is None else logits.add_(bias.to(logits.dtype))


class HeadGradients:
    """Gradients of (hidden, weight, bias) summed over chunks, only those asked for; weight and bias in fp32."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, bool, bool]) -> None:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if needed[1] else None
        self.bias = torch.zeros(bias.shape, dtype=wide, device=bias.device) if bias is not None and needed[2] else None

    def add(self, rows: slice, hidden: Tensor, weight: Tensor, gradient: Tensor) -> None:
        """Account for `gradient` [n, V], the loss's gradient with respect to the logits of `hidden[rows]`."""
        operand = gradient.to(hidden.dtype) if hidden.is_cuda else gradient
        if self.hidden is not None:
            self.hidden[rows] = (operand @ weight.to(operand.dtype)).to(hidden.dtype)
        if self.weight is not None:
            self.weight.addmm_(operand.T.to(self.weight.dtype), hidden[rows].to(self.weight.dtype))
        if self.bias is not None:
            self.bias += gradient.sum(0)
