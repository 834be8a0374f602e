"""The head losses as operators: what callers use, and how autograd, torch.compile and fake tensors see them.

The gradient is computed in the forward pass, while a block's logits are there. So the weight of every loss must be
known before: it goes in as a coefficient, and the backward pass only multiplies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megadistill.kernels.head_losses.loop import run, wide
from megadistill.kernels.head_losses.terms import Hard, HeadTerm, Projection, Soft, TopK, check, check_labels, encode

_ONCE = (
    "the head losses cannot be differentiated twice: their gradient is computed outside autograd; "
    "use megadistill.kernels.head_losses.reference_losses for second derivatives"
)


def head_losses(
    student: Projection,
    terms: Sequence[HeadTerm],
    coefficients: Tensor,
    labels: Tensor | None = None,
    teachers: Sequence[Projection] = (),
    *,
    mixing: Sequence[float] | None = None,
    mean: str = "geometric",
    top_k: TopK | None = None,
    vocabulary: int | None = None,
) -> tuple[Tensor, Tensor]:
    """All losses between the vocabulary heads of one micro-batch, in one pass, without the logits of the batch.

    Args:
        student: N rows; gradients flow into those of its parts that require them, also when the head or the body is
            frozen.
        terms: K losses, see `Hard` and `Soft`.
        coefficients: [K, N] what one unit of each row's loss weighs in the total; 0 leaves the row out of that loss.
            No gradient flows into them.
        labels: [N] int64 for Hard terms; anything where the coefficient is 0.
        teachers: for Soft terms, each of N rows and its own width; detached. A vocabulary larger than the student's
            is cut, the entries that a smaller one lacks have probability 0.
        mixing: weights of several teachers; equal ones by default.
        mean: `geometric`, softmax of the weighted mean of logits, or `arithmetic`, the weighted mean of distributions.
        top_k: instead of teachers.
        vocabulary: how many entries are real; the heads' rows past it get no probability and no gradient.

    Returns:
        total: [] sum of coefficients * losses, differentiable once.
        losses: [K, N] in nats, detached; where a coefficient is 0, what the row would have had (for Hard only if its
            label is one). fp32, or fp64 for fp64 input.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a workspace that does not hold one row.
        RuntimeError: when differentiated twice.
    """
    student = autocast(student)
    teachers = [autocast(detached(teacher)) for teacher in teachers]
    check(student, terms, labels, teachers, top_k, mean, coefficients)
    size = _vocabulary(student, vocabulary)
    check_labels(labels, terms, coefficients, size)
    needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in student]
    given = _flat(teachers, mixing, mean, top_k)
    total, losses, *_ = _forward(*student, labels, coefficients.detach(), *given, encode(terms), needs, size)
    return total, losses


def head_row_losses(
    student: Projection,
    term: HeadTerm,
    labels: Tensor | None = None,
    teachers: Sequence[Projection] = (),
    *,
    mixing: Sequence[float] | None = None,
    mean: str = "geometric",
    top_k: TopK | None = None,
    vocabulary: int | None = None,
) -> Tensor:
    """One term's loss of every row, [N] in nats, for who weighs rows by what comes after the forward pass.

    The gradient cannot be computed before the weights are known, so the backward pass computes the logits once more:
    prefer `head_losses` where coefficients are known. Arguments and errors as there.
    """
    student = autocast(student)
    teachers = [autocast(detached(teacher)) for teacher in teachers]
    check(student, [term], labels, teachers, top_k, mean)
    size = _vocabulary(student, vocabulary)
    return _row_forward(*student, labels, *_flat(teachers, mixing, mean, top_k), encode([term]), size)


def linear_ce(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The sum over rows of -log softmax(hidden @ weight.T + bias)[label], in nats: `head_losses` of one Hard term.

    Args:
        hidden: [N, H]; `weight` [V, H]; `bias` [V] or None.
        labels: [N] int64, every one a real label.
        smoothing: label smoothing.
    """
    ones = torch.ones(1, hidden.shape[0], dtype=wide(hidden.dtype), device=hidden.device)
    return head_losses(Projection(hidden, weight, bias), [Hard(smoothing)], ones, labels)[0]


def linear_soft_ce(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    temperature: float = 1.0,
) -> Tensor:
    """The sum over rows of T^2 * KL(teacher || student), in nats: `head_losses` of one Soft term.

    Args:
        hidden: [N, H] student states, `weight` [V, H] and `bias` [V] its head.
        teacher_hidden: [N, Ht], `teacher_weight` [Vt, Ht], `teacher_bias` [Vt]; no gradient flows into them.
        temperature: T, divides both models' logits.
    """
    ones = torch.ones(1, hidden.shape[0], dtype=wide(hidden.dtype), device=hidden.device)
    teacher = Projection(teacher_hidden, teacher_weight, teacher_bias)
    return head_losses(Projection(hidden, weight, bias), [Soft(temperature)], ones, teachers=[teacher])[0]


@torch.library.custom_op("megadistill::head_losses", mutates_args=())
def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    coefficients: Tensor,
    teacher_hidden: Sequence[Tensor],
    teacher_weight: Sequence[Tensor],
    teacher_bias: Sequence[Tensor],
    mixing: Sequence[float],
    arithmetic: bool,
    top_ids: Tensor | None,
    top_log_probs: Tensor | None,
    ghost: bool,
    terms: str,
    needs: Sequence[bool],
    vocabulary: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    teachers = [
        Projection(h, w, b if b.numel() else None)
        for h, w, b in zip(teacher_hidden, teacher_weight, teacher_bias, strict=True)
    ]
    top_k = None if top_ids is None or top_log_probs is None else TopK(top_ids, top_log_probs, ghost)
    student = Projection(hidden, weight, bias)
    with torch.no_grad():
        return tuple(run(student, terms, labels, coefficients, teachers, mixing, arithmetic, top_k, needs, vocabulary))  # type: ignore[return-value]


@_forward.register_fake
def _(hidden: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    coefficients, needs = rest[1], rest[-2]
    dtype = wide(hidden.dtype)

    def empty(*shape: Any) -> Tensor:
        return hidden.new_empty(shape, dtype=dtype)

    return (
        empty(),
        empty(*coefficients.shape),
        empty(),
        empty(*hidden.shape) if needs[0] else empty(0),
        empty(*weight.shape) if needs[1] else empty(0),
        empty(*bias.shape) if needs[2] and bias is not None else empty(0),
    )


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    hidden, weight, bias = inputs[:3]
    _, losses, unit, *gradients = output
    ctx.mark_non_differentiable(losses, unit, *gradients)
    ctx.save_for_backward(unit, *gradients)
    ctx.dtypes = [hidden.dtype, weight.dtype, hidden.dtype if bias is None else bias.dtype]
    ctx.num_teachers = len(inputs[5])


def _backward(ctx: Any, upstream: Tensor, *_: Any) -> tuple[Any, ...]:
    if torch.is_grad_enabled():  # only with create_graph=True: what follows would be taken for a constant
        raise RuntimeError(_ONCE)
    unit, *gradients = ctx.saved_tensors
    scaled = _scale(upstream, unit, *gradients, *ctx.dtypes)
    needed = [g if need else None for g, need in zip(scaled, ctx.needs_input_grad[:3], strict=True)]
    nothing = [None] * ctx.num_teachers
    return (*needed, None, None, nothing, list(nothing), list(nothing), *[None] * 8)


_forward.register_autograd(_backward, setup_context=_remember)


@torch.library.custom_op("megadistill::head_row_losses", mutates_args=())
def _row_forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor | None,
    teacher_hidden: Sequence[Tensor],
    teacher_weight: Sequence[Tensor],
    teacher_bias: Sequence[Tensor],
    mixing: Sequence[float],
    arithmetic: bool,
    top_ids: Tensor | None,
    top_log_probs: Tensor | None,
    ghost: bool,
    terms: str,
    vocabulary: int,
) -> Tensor:
    zeros = torch.zeros(1, hidden.shape[0], dtype=wide(hidden.dtype), device=hidden.device)
    teachers = teacher_hidden, teacher_weight, teacher_bias, mixing, arithmetic, top_ids, top_log_probs, ghost
    found = _forward(hidden, weight, bias, labels, zeros, *teachers, terms, [False] * 3, vocabulary)
    losses: Tensor = found[1]
    return losses[0].clone()


@_row_forward.register_fake
def _(hidden: Tensor, *_: Any) -> Tensor:
    return hidden.new_empty(hidden.shape[0], dtype=wide(hidden.dtype))


def _remember_rows(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    hidden, weight, bias, labels, teacher_hidden, teacher_weight, teacher_bias, *rest = inputs
    ctx.save_for_backward(hidden, weight, bias, labels, *rest[2:4], *teacher_hidden, *teacher_weight, *teacher_bias)
    ctx.num_teachers, ctx.rest = len(teacher_hidden), (*rest[:2], *rest[4:])


def _row_backward(ctx: Any, upstream: Tensor) -> tuple[Any, ...]:
    if torch.is_grad_enabled():
        raise RuntimeError(_ONCE)
    hidden, weight, bias, labels, ids, log_probs, *lists = ctx.saved_tensors
    n = ctx.num_teachers
    mixing, arithmetic, ghost, terms, vocabulary = ctx.rest
    teachers = lists[:n], lists[n : 2 * n], lists[2 * n :], mixing, arithmetic, ids, log_probs, ghost
    needs = list(ctx.needs_input_grad[:3])
    _, _, unit, *gradients = _forward(
        hidden, weight, bias, labels, upstream.unsqueeze(0), *teachers, terms, needs, vocabulary
    )
    dtypes = (hidden.dtype, weight.dtype, hidden.dtype if bias is None else bias.dtype)
    scaled = _scale(torch.ones_like(unit), unit, *gradients, *dtypes)
    nothing = [None] * n
    needed = [g if need else None for g, need in zip(scaled, needs, strict=True)]
    return (*needed, None, nothing, list(nothing), list(nothing), *[None] * 7)


_row_forward.register_autograd(_row_backward, setup_context=_remember_rows)


@torch.library.custom_op("megadistill::head_losses_backward", mutates_args=())
def _scale(
    upstream: Tensor,
    unit: Tensor,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    hidden_dtype: torch.dtype,
    weight_dtype: torch.dtype,
    bias_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    factor = upstream * unit
    parts = ((hidden, hidden_dtype), (weight, weight_dtype), (bias, bias_dtype))
    return tuple(torch.mul(g, factor, out=torch.empty_like(g, dtype=dtype)) for g, dtype in parts)  # type: ignore[return-value]


@_scale.register_fake
def _(upstream: Tensor, unit: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor, *dtypes: torch.dtype) -> Any:
    return tuple(torch.empty_like(g, dtype=d) for g, d in zip((hidden, weight, bias), dtypes, strict=True))


def detached(given: Projection) -> Projection:
    """The same, without a way for gradients."""
    return Projection(given.hidden.detach(), given.weight.detach(), None if given.bias is None else given.bias.detach())


def _flat(
    teachers: Sequence[Projection], mixing: Sequence[float] | None, mean: str, top_k: TopK | None
) -> tuple[Any, ...]:
    """The teachers as an operator's schema can carry them; an empty tensor stands for no bias."""
    return (
        [t.hidden for t in teachers],
        [t.weight for t in teachers],
        [t.hidden.new_empty(0) if t.bias is None else t.bias for t in teachers],
        _mixing(mixing, len(teachers)),
        mean == "arithmetic",
        None if top_k is None else top_k.ids,
        None if top_k is None else top_k.log_probs.detach(),
        top_k is not None and top_k.ghost,
    )


def autocast(given: Projection) -> Projection:
    """As `nn.Linear` takes it under autocast: hidden states and weight in its dtype."""
    device = given.hidden.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return given
    dtype = torch.get_autocast_dtype(device)
    return Projection(given.hidden.to(dtype), given.weight.to(dtype), given.bias)


def _vocabulary(student: Projection, vocabulary: int | None) -> int:
    size = student.weight.shape[0]
    if vocabulary is None:
        return size
    if not 0 < vocabulary <= size:
        raise ValueError(f"vocabulary must be in 1 ... {size}, the rows of the student's weight, not {vocabulary}")
    return vocabulary


def _mixing(mixing: Sequence[float] | None, num_teachers: int) -> list[float]:
    if mixing is None:
        return [1 / max(num_teachers, 1)] * max(num_teachers, 1)  # autograd wants no empty list of numbers
    if len(mixing) != num_teachers:
        raise ValueError(f"mixing must have one weight for each of the {num_teachers} teachers, not {len(mixing)}")
    return list(mixing)
