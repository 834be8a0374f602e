"""The head losses where no rank has a whole head: each holds a slice of the vocabulary of student and teacher.

Tested on two gloo processes; its speed is not measured, and on a GPU it has not run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from megadistill.kernels.forward_gradient import with_gradient
from megadistill.kernels.head_losses.loop import run
from megadistill.kernels.head_losses.op import autocast, detached
from megadistill.kernels.head_losses.rows_torch import LOWEST, Block, RowFunction
from megadistill.kernels.head_losses.terms import Hard, HeadTerm, Projection, Soft, check, check_labels, decode, encode

TEMPORARIES = 9
"""Values in at least fp32 that `_rows` holds at once for every value of a block."""


def sharded_head_losses(
    student: Projection,
    terms: Sequence[HeadTerm],
    coefficients: Tensor,
    labels: Tensor | None = None,
    teacher: Projection | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    vocabulary: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`head_losses` of a vocabulary that is split over ranks, in eager PyTorch: one all-gather of a few numbers a row
    for each block of rows, and one all-reduce of the hidden states' gradient.

    Args:
        student: hidden states [N, H], the same on every rank, and this rank's weight [S, H] and bias [S]: columns
            rank * S ... of the vocabulary, S being the same on every rank.
        terms: Hard ones, and Soft ones of forward_kl.
        coefficients: [K, N], as for `head_losses`; the same on every rank.
        labels: [N] int64, of the whole vocabulary.
        teacher: as the student; detached.
        group: the ranks that share the vocabulary, in its order; all by default.
        vocabulary: how many columns are real: the last ranks' heads are padded to S. None: all of them.

    Returns:
        total: [] as of `head_losses`, the same on every rank. Its gradient of the hidden states is the whole one on
            every rank, that of weight and bias this rank's slice.
        losses: [K, N] in nats, detached.

    Raises:
        ValueError: arguments that do not fit, or a workspace that does not hold one row.
        RuntimeError: when differentiated twice.
    """
    student = autocast(student)
    teachers = [] if teacher is None else [autocast(detached(teacher))]
    check(student, terms, labels, teachers, None, "geometric", coefficients)
    if any(isinstance(term, Soft) and term.divergence != "forward_kl" for term in terms):
        raise ValueError("a sharded vocabulary knows forward_kl only: the other divergences need a second exchange")
    size, num_ranks = student.weight.shape[0], dist.get_world_size(group)
    if teacher is not None and teacher.weight.shape[0] != size:
        raise ValueError(f"teacher.weight must have the student's {size} rows, not {teacher.weight.shape[0]}")
    vocabulary = size * num_ranks if vocabulary is None else vocabulary
    if not 0 < vocabulary <= size * num_ranks:
        raise ValueError(f"vocabulary must be in 1 ... {size * num_ranks}, {num_ranks} ranks' rows, not {vocabulary}")
    check_labels(labels, terms, coefficients, vocabulary)
    first = dist.get_rank(group) * size
    own = min(max(vocabulary - first, 0), size)
    rows = RowFunction(
        partial(_rows, first=first, real=own, vocabulary=vocabulary, group=group), values=TEMPORARIES, whole=True
    )
    kept: list[Tensor] = []

    def compute(needed: Sequence[bool]) -> tuple[Tensor, Sequence[Tensor | None]]:
        plain = detached(student)
        found = run(
            plain, encode(terms), labels, coefficients.detach(), teachers, [1.0], False, None, needed, size, rows
        )
        kept.append(found.losses)
        if needed[0]:
            dist.all_reduce(found.hidden, group=group)
        each = zip((found.hidden, found.weight, found.bias), needed, strict=True)
        return found.total, [gradient * found.unit if need else None for gradient, need in each]

    total = with_gradient(list(student), compute)
    return total, kept[0]


def _rows(block: Block, *, first: int, real: int, vocabulary: int, group: dist.ProcessGroup | None) -> None:
    """Of columns `first` ... `first + real` of `vocabulary`; what is behind them is no column. In place or not."""
    z, labels, losses, coefficients = block.z, block.labels, block.losses, block.coefficients
    logits = [_masked(z, block.z_bias, real)] + ([] if block.u is None else [_masked(block.u, block.u_bias, real)])
    tops = [x.amax(-1) for x in logits]
    below = [x - top.unsqueeze(1) for x, top in zip(logits, tops, strict=True)]
    numbers = list(tops)
    for term in decode(block.terms):
        if isinstance(term, Soft):
            q, p = ((x / term.temperature).exp() for x in below)
            numbers += [q.sum(-1), p.sum(-1), (p * (below[1] - below[0])).sum(-1) / term.temperature]
        else:
            assert labels is not None
            at = (labels.clamp(min=0) - first).unsqueeze(1)
            here = (at >= 0) & (at < real)
            label = torch.where(here, logits[0].gather(1, at.clamp(0, z.shape[1] - 1)), 0.0).squeeze(1)
            numbers += [below[0].exp().sum(-1), logits[0][:, :real].sum(-1), label]
    all_numbers = _gathered(torch.stack(numbers), group)

    highest = [all_numbers[:, k].amax(0) for k in range(len(tops))]
    shifts = [all_numbers[:, k] - top for k, top in enumerate(highest)]  # [R, n], of every rank's largest logit
    own = [top - whole for top, whole in zip(tops, highest, strict=True)]
    place, total = len(tops), torch.zeros_like(logits[0])
    for number, term in enumerate(decode(block.terms)):
        first_sum, second, third = all_numbers[:, place : place + 3].unbind(1)
        place += 3
        weight = coefficients[number]
        if isinstance(term, Soft):
            t = term.temperature
            z_share, u_share = ((shift / t).exp() for shift in shifts)
            z_sum, u_sum = (first_sum * z_share).sum(0), (second * u_share).sum(0)
            gap = (u_share * (third + second * (shifts[1] - shifts[0]) / t)).sum(0)
            losses[number] = t * t * (gap / u_sum + z_sum.log() - u_sum.log())
            for sign, x, shift, whole in ((1, below[0], own[0], z_sum), (-1, below[1], own[1], u_sum)):
                scale = sign * t * weight * (shift / t).exp() / whole
                total += (x / t).exp() * scale.unsqueeze(1)
        else:
            assert isinstance(term, Hard)
            z_sum = (first_sum * shifts[0].exp()).sum(0)
            whole, rest = z_sum.log() + highest[0], 1 - term.smoothing
            losses[number] = whole - rest * third.sum(0) - term.smoothing * second.sum(0) / vocabulary
            total += below[0].exp() * (weight * own[0].exp() / z_sum).unsqueeze(1)
            total -= (weight * term.smoothing / vocabulary).unsqueeze(1)
            total.scatter_add_(1, at.clamp(0, z.shape[1] - 1), torch.where(here, -rest * weight.unsqueeze(1), 0.0))
    total[:, real:] = 0
    block.gradient.copy_(total)


def _masked(logits: Tensor, bias: Tensor | None, real: int) -> Tensor:
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    wide = wide.clone() if bias is None else wide + bias
    wide[:, real:] = LOWEST
    return wide


def _gathered(numbers: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[R, k, n] from every rank's [k, n]."""
    all_numbers = numbers.new_empty(dist.get_world_size(group), *numbers.shape)
    dist.all_gather(list(all_numbers.unbind()), numbers.contiguous(), group=group)
    return all_numbers
