"""Logits of a chunk of rows at a time, for who wants scores and no gradient."""

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


@torch.no_grad()
def top_entries(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[N] int64: the entry of the vocabulary with each row's highest logit."""
    best = torch.zeros(hidden.shape[0], dtype=torch.int64, device=hidden.device)
    for part in chunks(hidden.shape[0], weight.shape[0], num_buffers=1):
        best[part] = fp32_logits(hidden[part], weight, bias).argmax(-1)
    return best
