"""How many rows of logits a head-loss call holds at once, and what memory that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megadistill.kernels import dispatch, native
from megadistill.kernels.head_losses import rows_cuda, rows_torch
from megadistill.kernels.head_losses.rows_torch import Block, RowFunction
from megadistill.kernels.head_losses.terms import launches

_MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """How one call of the head losses is carried out."""

    rows: RowFunction
    operands: torch.dtype
    """In which the student's products are computed."""
    logits: torch.dtype
    vocabulary: int
    leading: int
    """Values from one row of a block to the next: a multiple of 64 on a GPU, whose fast loads want aligned rows."""
    teacher: bool
    shared: bool
    """The gradient takes the logits' place."""
    inner_rows: int
    outer_rows: int
    at_once: int
    """See `Block.at_once`."""
    bytes: int
    """Of all blocks, and of what is made of them."""

    def teacher_operands(self, hidden: Tensor) -> torch.dtype:
        """In which a teacher's products are computed."""
        return hidden.dtype if hidden.is_cuda else self.logits


def plan(
    rows: RowFunction,
    dtype: torch.dtype,
    vocabulary: int,
    num_rows: int,
    on_gpu: bool,
    *,
    teacher: bool,
    mixed: bool,
) -> Plan:
    """For hidden states of `dtype`.

    Args:
        teacher: there is one or more, of hidden states.
        mixed: several, of which the distributions are mixed.

    Raises:
        ValueError: the workspace does not hold one row.
    """
    operands, logits, leading = block_layout(dtype, vocabulary, on_gpu)
    wide = torch.promote_types(dtype, torch.float32).itemsize
    shared = rows.in_place and operands == logits
    inner_bytes = logits.itemsize * (1 + teacher + 2 * mixed) + wide * rows.values * rows.whole
    outer_bytes = 0 if shared else operands.itemsize
    values = 0 if rows.whole else wide * rows.values
    most = min(num_rows, rows.most or num_rows)
    inner, outer, at_once = block_rows(num_rows, leading, inner_bytes, outer_bytes, on_gpu, values, most)
    held = leading * (inner * inner_bytes + outer * outer_bytes + at_once * values)
    return Plan(rows, operands, logits, vocabulary, leading, teacher, shared, inner, outer, at_once, held)


def row_function(kind: str, terms: str) -> RowFunction:
    """That of triton, cuda, native or eager."""
    if kind == "native":
        return RowFunction(native.rows, values=native.VALUES, most=torch.get_num_threads())
    if kind == "cuda":
        return RowFunction(rows_cuda.rows)
    if kind == "triton":
        return RowFunction(_triton, in_place=len(launches(terms)) == 1)
    return RowFunction(rows_torch.rows, values=rows_torch.TEMPORARIES)


def _triton(block: Block) -> None:
    from megadistill.kernels.head_losses import rows_triton  # where a plan is made triton need not be installed

    rows_triton.rows(block)


def block_layout(dtype: torch.dtype, vocabulary: int, on_gpu: bool) -> tuple[torch.dtype, torch.dtype, int]:
    """The dtypes of a call's products and logits, and the values from one row of a block to the next, for hidden states
    of `dtype`."""
    wide = torch.promote_types(dtype, torch.float32)
    if not on_gpu:
        return wide, wide, vocabulary  # see `fp32_logits` for why
    return dtype, dtype if dispatch.settings().logits == "fast" else wide, -(-vocabulary // 64) * 64


def block_rows(
    num_rows: int, leading: int, inner_bytes: int, outer_bytes: int, on_gpu: bool, values: int = 0, most: int = 1
) -> tuple[int, int, int]:
    """Rows of an inner and of an outer block, and those that a row function works on at once, which fit the workspace.

    Args:
        inner_bytes: per value, of all inner buffers together.
        outer_bytes: per value, of the outer one; 0 when the gradient takes the logits' place.
        values: bytes per value of what a row function makes of a row; up to half of a workspace that was set is its.
        most: rows that it can work on at once.

    Raises:
        ValueError: the workspace does not hold one row.
    """
    ratio = 4 if outer_bytes else 1  # products of 184 rows forward and 735 backward hide their memory traffic
    per_row, beside = leading * (inner_bytes + ratio * outer_bytes), leading * values
    mib = dispatch.settings().workspace_mib
    if mib is None:
        room = (256 if on_gpu else 32) * _MIB
        budget = max(256 * _MIB, 256 * per_row) if on_gpu else max(4 * _MIB * inner_bytes, 16 * per_row)
    else:
        room = budget = mib * _MIB
        room -= max(room // 2, per_row)
    at_once = max(min(room // beside, most) if values else most, 1)
    inner = (budget if mib is None else budget - at_once * beside) // per_row
    if inner < 1:
        raise ValueError(
            f"workspace_mib={mib} does not hold one row: {-(-(per_row + beside) // _MIB)} MiB at least "
            f"for {leading} logits"
        )
    if inner > 128:
        inner -= inner % 128
    inner = min(inner, max(num_rows, 1))
    return inner, min(ratio * inner, max(num_rows, 1)), min(at_once, inner)


def workspace_bytes(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Sequence[Tensor],
    teacher_weight: Sequence[Tensor],
    terms: str,
    arithmetic: bool,
    top_k: bool,
    vocabulary: int,
    on_gpu: bool,
) -> int:
    """What a call holds beside its arguments and results, on a machine that need not be this one; but for a few numbers
    a row and a few a column."""
    kind: str = dispatch.settings().rows
    if not on_gpu:
        kind, _ = dispatch.row_implementation(torch.device("cpu"), hidden.dtype, terms, top_k)
    elif kind == "auto":
        kind = "eager" if top_k or hidden.dtype == torch.float64 else "triton"
    num_teachers = len(teacher_hidden)
    rows, mixed = row_function(kind, terms), arithmetic and num_teachers > 1
    found = plan(rows, hidden.dtype, vocabulary, hidden.shape[0], on_gpu, teacher=num_teachers > 0, mixed=mixed)
    given = () if on_gpu else (hidden, weight, *teacher_hidden, *teacher_weight)
    return found.bytes + sum(t.numel() * found.operands.itemsize for t in given if t.dtype != found.operands)
