"""Inputs for the head losses, their definition in a wide dtype, and how far a result is from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megadistill.kernels.head_losses import HeadTerm, Projection, head_losses, reference_losses

IGNORE = -100


@dataclass
class Case:
    """Arguments of one call; `student` in fp64, everything else beside it."""

    student: Projection
    teachers: list[Projection]
    labels: Tensor
    coefficients: Tensor

    def to(self, dtype: torch.dtype, device: str = "cpu") -> Case:
        def cast(given: Projection) -> Projection:
            hidden, weight, bias = given
            return Projection(
                hidden.to(device, dtype), weight.to(device, dtype), None if bias is None else bias.to(device, dtype)
            )

        return Case(
            cast(self.student),
            [cast(t) for t in self.teachers],
            self.labels.to(device),
            self.coefficients.to(device),
        )


def case(
    rows: int,
    vocabulary: int,
    num_terms: int = 2,
    hidden: int = 16,
    teacher_hidden: Sequence[int] = (24,),
    bias: bool = True,
    seed: int = 0,
    like: float | None = None,
    scale: float = 1.0,
) -> Case:
    """Random states and heads; two thirds of the rows are labelled, coefficients differ from row to row.

    Args:
        like: how far the student is from its teacher (then both have one head); None: unrelated.
        scale: multiplies the logits.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    def head(width: int) -> Projection:
        weight = scale * normal(vocabulary, width) / width**0.5
        return Projection(normal(rows, width), weight, normal(vocabulary) if bias else None)

    teachers = [head(width) for width in teacher_hidden]
    student = head(hidden)
    if like is not None:
        theirs = teachers[0]
        student = Projection(theirs.hidden + like * normal(*theirs.hidden.shape), theirs.weight, theirs.bias)
    labels = torch.randint(0, vocabulary, (rows,), generator=draw)
    labelled = torch.rand(rows, generator=draw) < 0.67
    coefficients = torch.rand(num_terms, rows, generator=draw, dtype=torch.float64) + 0.1
    coefficients[-1] *= labelled  # the last term is the hard one in most tests
    return Case(student, teachers, torch.where(labelled, labels, IGNORE), coefficients)


Needs = Sequence[bool]
ALL: Needs = (True, True, True)


def gradients(
    fn: Callable[[Projection], Tensor], student: Projection, needs: Needs = ALL
) -> tuple[Tensor, list[Tensor]]:
    """(detached value, gradients of hidden, weight and bias that are needed) of 3 * fn(student)."""
    leaves = [None if t is None else t.detach().clone().requires_grad_(n) for t, n in zip(student, needs, strict=True)]
    value = fn(Projection(*leaves))  # type: ignore[arg-type]
    (3.0 * value).backward()
    return value.detach(), [t.grad for t in leaves if t is not None and t.grad is not None]


def definition(given: Case, terms: Sequence[HeadTerm], needs: Needs = ALL, **options: Any) -> Any:
    """Value and gradients by the reference, in the inputs' dtype."""

    def fn(student: Projection) -> Tensor:
        losses = reference_losses(student, terms, given.labels, given.teachers, **options)
        return torch.where(given.coefficients != 0, given.coefficients * losses, 0).sum()

    return gradients(fn, given.student, needs)


def ours(given: Case, terms: Sequence[HeadTerm], needs: Needs = ALL, **options: Any) -> Any:
    """Value and gradients by the op."""

    def fn(student: Projection) -> Tensor:
        return head_losses(student, terms, given.coefficients, given.labels, given.teachers, **options)[0]

    return gradients(fn, given.student, needs)


def distance(found: Tensor, exact: Tensor) -> float:
    """Relative L2 error; a NaN passes no comparison."""
    exact = exact.double().cpu()
    return float((found.double().cpu() - exact).norm() / exact.norm().clamp(min=1e-300))
