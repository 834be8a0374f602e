"""How the head losses walk over rows so that [N, V] logits never exist: blocks of logits become blocks of gradient.

Two levels. An inner block of c rows holds the logits of student and teacher in fp32, because the difference of two
nearly equal distributions cancels (bf16 logits lose it: relative gradient error 7e-2 where fp32 ones have 2e-3); its
gradient goes into an outer block of C rows in the operands' dtype, which feeds the two large products of the backward
pass. Nothing is recomputed: (6 H + 2 Ht) N V operations in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from megadistill.kernels import dispatch
from megadistill.kernels.head_losses import blocks, rows_torch
from megadistill.kernels.head_losses.blocks import row_function
from megadistill.kernels.head_losses.rows_torch import Block, RowFunction
from megadistill.kernels.head_losses.terms import Projection, Soft, TopK, decode


class Result(NamedTuple):
    """Gradients are those of `total`, divided by `unit`; tensors that nobody needs are empty."""

    total: Tensor
    """[] sum of coefficients * losses."""
    losses: Tensor
    """[K, N] plain losses in nats."""
    unit: Tensor
    """[] the largest coefficient: without it, those of a large global batch would underflow in fp16."""
    hidden: Tensor
    weight: Tensor
    bias: Tensor


def wide(dtype: torch.dtype) -> torch.dtype:
    """What logits and sums are computed in: at least fp32."""
    return torch.promote_types(dtype, torch.float32)


def run(
    student: Projection,
    terms: str,
    labels: Tensor | None,
    coefficients: Tensor,
    teachers: Sequence[Projection],
    mixing: Sequence[float],
    arithmetic: bool,
    top_k: TopK | None,
    needs: Sequence[bool],
    vocabulary: int,
    rows: RowFunction | None = None,
) -> Result:
    """One pass over the heads.

    Args:
        student ... top_k: as for `head_losses`.
        needs: which gradients are asked for, of (hidden, weight, bias).
        rows: instead of the one that dispatch chooses.
    """
    num_rows, size = student.hidden.shape[0], student.weight.shape[0]
    rows = rows or row_function(dispatch.head_rows(student.hidden, terms, top_k is not None), terms)
    mixed = arithmetic and len(teachers) > 1
    plan = blocks.plan(
        rows, student.hidden.dtype, vocabulary, num_rows, student.hidden.is_cuda, teacher=bool(teachers), mixed=mixed
    )
    dtype, device = wide(student.hidden.dtype), student.hidden.device
    losses = torch.empty(len(decode(terms)), num_rows, dtype=dtype, device=device)
    gradients = _Gradients(student, needs, dtype, size, vocabulary)
    if num_rows == 0:
        zero = torch.zeros((), dtype=dtype, device=device)
        return Result(zero, losses, torch.ones_like(zero), *gradients.finished())

    unit = coefficients.abs().amax().clamp(min=torch.finfo(dtype).tiny).to(dtype)
    relative = (coefficients / unit).to(dtype).contiguous()  # kernels know where a row's number lies
    labels = None if labels is None else labels.contiguous()
    ours = _operands(student, plan, plan.operands)
    theirs = [_operands(teacher, plan, plan.teacher_operands(teacher.hidden)) for teacher in teachers]
    block = _Blocks(plan, dtype, device)
    for outer in _slices(num_rows, plan.outer_rows):
        for inner in _slices(outer.stop, plan.inner_rows, outer.start):
            z = _logits(ours, inner, block.z)
            u, u_bias = _teacher_logits(theirs, mixing, arithmetic, inner, block, terms)
            rows.run(
                Block(
                    z,
                    relative[:, inner],
                    terms,
                    losses[:, inner],
                    block.gradient[inner.start - outer.start : inner.stop - outer.start],
                    u,
                    ours.bias,
                    u_bias,
                    None if labels is None else labels[inner],
                    None if top_k is None else (top_k.ids[inner], top_k.log_probs[inner]),
                    top_k is not None and top_k.ghost,
                    plan.at_once,
                )
            )
        gradients.add(outer, ours, block.gradient[: outer.stop - outer.start])
    # a coefficient of 0 says that the row is not meant, whatever its loss came out as
    total = torch.where(coefficients == 0, 0, coefficients * losses).sum().to(dtype)
    return Result(total, losses, unit, *gradients.finished())


class _Blocks:
    """The workspace: everything of [rows, V] size that a call ever holds."""

    def __init__(self, plan: blocks.Plan, dtype: torch.dtype, device: torch.device) -> None:
        def rows(count: int, dtype: torch.dtype) -> Tensor:
            whole = torch.empty(count, plan.leading, dtype=dtype, device=device)
            return whole[:, : plan.vocabulary]

        self.plan = plan
        self.z = rows(plan.inner_rows, plan.logits)
        self.u = rows(plan.inner_rows, plan.logits) if plan.teacher else None
        self.gradient = self.z if plan.shared else rows(plan.outer_rows, plan.operands)


class _Gradients:
    """Sums over blocks of what the student's hidden states, weight and bias get; weight and bias in fp32."""

    def __init__(
        self, student: Projection, needs: Sequence[bool], dtype: torch.dtype, size: int, vocabulary: int
    ) -> None:
        def empty(*shape: int) -> Tensor:
            return torch.empty(*shape, dtype=dtype, device=student.hidden.device)

        rows, width = student.hidden.shape
        self.hidden = empty(rows, width) if needs[0] else None
        self.weight = empty(size, width) if needs[1] else None
        self.bias = empty(size) if needs[2] and student.bias is not None else None
        for whole in (self.weight, self.bias):
            if whole is not None:
                whole[vocabulary if rows else 0 :] = 0
        self.vocabulary, self.started = vocabulary, False
        self.nothing = empty

    def add(self, rows: slice, student: Projection, gradient: Tensor) -> None:
        if self.hidden is not None:
            multiply(gradient, student.weight, self.hidden[rows])
        if self.weight is not None:
            multiply(gradient.T, student.hidden[rows], self.weight[: self.vocabulary], add=self.started)
        if self.bias is not None:
            total = gradient.sum(0, dtype=self.bias.dtype)
            self.bias[: self.vocabulary] = self.bias[: self.vocabulary] + total if self.started else total
        self.started = True

    def finished(self) -> tuple[Tensor, Tensor, Tensor]:
        return tuple(self.nothing(0) if g is None else g for g in (self.hidden, self.weight, self.bias))  # type: ignore[return-value]


def multiply(a: Tensor, b: Tensor, out: Tensor, add: bool = False, factor: float = 1.0) -> Tensor:
    """out = factor * a @ b, or out += it; accumulated in fp32 and written in out's dtype, without a second tensor."""
    if a.dtype == out.dtype:
        return torch.addmm(out, a, b, beta=int(add), alpha=factor, out=out)
    return torch.addmm(out, a, b, out.dtype, beta=int(add), alpha=factor, out=out)


def _slices(stop: int, size: int, start: int = 0) -> Iterator[slice]:
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def _operands(given: Projection, plan: blocks.Plan, dtype: torch.dtype) -> Projection:
    """What the products read: rows past the vocabulary left out, in the dtype in which this machine multiplies."""
    bias = given.bias
    if bias is not None:
        bias = _roomy(bias[: plan.vocabulary].to(wide(dtype)).clamp(min=rows_torch.LOWEST), plan.leading)
    return Projection(given.hidden.to(dtype), given.weight[: plan.vocabulary].to(dtype), bias)


def _roomy(bias: Tensor, leading: int) -> Tensor:
    """The same values, with as many behind them in memory as a row of a block has."""
    return torch.nn.functional.pad(bias, (0, leading - bias.shape[0]))[: bias.shape[0]]


def _logits(given: Projection, rows: slice, out: Tensor, add: bool = False, factor: float = 1.0) -> Tensor:
    block = out[: rows.stop - rows.start, : given.weight.shape[0]]
    return multiply(given.hidden[rows], given.weight.T, block, add, factor)


def _teacher_logits(
    teachers: Sequence[Projection],
    mixing: Sequence[float],
    arithmetic: bool,
    rows: slice,
    block: _Blocks,
    terms: str,
) -> tuple[Tensor | None, Tensor | None]:
    """The logits of one teacher that stands for all, and a bias yet to be added to them."""
    if not teachers:
        return None, None
    assert block.u is not None
    u = block.u[: rows.stop - rows.start]
    shortest = min(teacher.weight.shape[0] for teacher in teachers)
    if shortest < u.shape[1]:
        u[:, shortest:] = rows_torch.lowest(u.dtype)
    if len(teachers) == 1:
        _logits(teachers[0], rows, u)
        return u, _padded(teachers[0].bias, block.plan)
    if arithmetic:
        return _arithmetic(teachers, mixing, rows, u[:, :shortest], decode(terms), u), None
    for number, (teacher, weight) in enumerate(zip(teachers, mixing, strict=True)):
        cut = Projection(teacher.hidden, teacher.weight[:shortest])
        _logits(cut, rows, u, add=number > 0, factor=weight)
        if teacher.bias is not None:
            u[:, :shortest] += weight * teacher.bias[:shortest]
    return u, None


def _arithmetic(
    teachers: Sequence[Projection],
    mixing: Sequence[float],
    rows: slice,
    u: Tensor,
    terms: Sequence[object],
    whole: Tensor,
) -> Tensor:
    """T log(sum_k w_k softmax(u_k / T)): logits whose softmax at T is the mean of the teachers' distributions."""
    temperature = next(term.temperature for term in terms if isinstance(term, Soft))
    total = torch.zeros_like(u)
    for teacher, weight in zip(teachers, mixing, strict=True):
        _logits(Projection(teacher.hidden, teacher.weight[: u.shape[1]]), rows, u)
        if teacher.bias is not None:
            u += teacher.bias[: u.shape[1]]
        total.add_(u.div_(temperature).softmax(-1), alpha=weight)
    torch.mul(total.log_(), temperature, out=u).clamp_(min=rows_torch.lowest(u.dtype))
    return whole


def _padded(bias: Tensor | None, plan: blocks.Plan) -> Tensor | None:
    """A bias for the whole vocabulary, 0 where the teacher has no entries."""
    if bias is None or bias.shape[0] == plan.vocabulary:
        return bias
    return torch.nn.functional.pad(bias, (0, plan.leading - bias.shape[0]))[: plan.vocabulary]
