"""Losses whose gradient is formed in the forward pass, while what it is made of is there; backward only multiplies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Compute = Callable[[Sequence[bool]], tuple[Tensor, Sequence[Tensor | None]]]


def with_gradient(inputs: Sequence[Tensor | None], compute: Compute) -> Tensor:
    """A loss [] that is differentiable once.

    Args:
        inputs: what gradients may flow into; None where there is nothing, as for a missing bias.
        compute: `compute(needed)` returns the loss [] and its gradient with respect to every input, in any dtype, None
            where none is needed. It runs without autograd.
    """
    loss: Tensor = _WithGradient.apply(compute, *inputs)
    return loss


def refuse_twice(what: str) -> None:
    """Called in the backward pass of what is differentiable once.

    Raises:
        RuntimeError: that pass is to be differentiated (`create_graph=True`), and would be taken for a constant.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            f"{what} cannot be differentiated twice: its gradient is computed outside autograd; use its reference "
            "(megadistill.kernels) for second derivatives"
        )


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Compute, *inputs: Tensor | None) -> Tensor:
        loss, gradients = compute(ctx.needs_input_grad[1:])
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if value is None else value.dtype for value in inputs]
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        refuse_twice("this loss")
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return (None, *(None if gradient is None else (gradient * upstream).to(dtype) for gradient, dtype in pairs))
