"""The losses between hidden states: what callers use, and how autograd sees it.

Nothing is kept for the backward pass but the states, which are alive anyway: it reads them once more. A gradient formed
in the forward pass would be read and written once more too, to be scaled, and would take its memory until then.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from megadistill.kernels import dispatch
from megadistill.kernels.forward_gradient import refuse_twice
from megadistill.kernels.hidden_losses import rows_torch

Kind = Literal["squares", "normalized", "cosine"]
"""squares: |s - t|^2; normalized: |s/|s| - t/|t||^2 (Patient-KD, Sun et al. 2019, equation 7);
cosine: 1 - cos(s, t)."""

WIDEST = 16384
"""Values of a state; those of both models fill the registers of a Triton program."""


def hidden_losses(
    kind: Kind, students: Sequence[Tensor], teachers: Sequence[Tensor], weights: Sequence[float], mask: Tensor
) -> Tensor:
    """The sum over layers and attended positions of weight * loss between two models' states.

    Where widths differ, states come here through their projection, a module (under ZeRO-3 its weight is whole in its
    own forward only); its product and the gradient of that are all it costs.

    Args:
        kind: see `Kind`. A state shorter than 1e-12 counts as zero: its cosine with anything is 0, and where only
            directions count no gradient flows into it.
        students: [..., H] of each layer, of any float dtype; differences and norms are computed in fp32.
        teachers: likewise, the same widths; no gradient flows into them.
        weights: of each layer.
        mask: [...] bool, the positions that count; what stands elsewhere is not read.

    Returns:
        [] fp32 (fp64 for fp64 states), differentiable once.

    Raises:
        ValueError: naming what does not fit.
        RuntimeError: when differentiated twice.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, not {kind!r}")
    if not students or not len(students) == len(teachers) == len(weights):
        raise ValueError(
            f"students, teachers and weights must be one for each layer, not {len(students)}, {len(teachers)} and "
            f"{len(weights)}"
        )
    shape = students[0].shape
    if len(shape) < 2 or shape[-1] == 0:
        raise ValueError(f"students must be [..., H] of at least one value, not {list(shape)}")
    for name, tensors in (("students", students), ("teachers", teachers)):
        for number, one in enumerate(tensors):
            if one.shape != shape or not one.is_floating_point():
                raise ValueError(f"{name}[{number}] must be float {list(shape)}, not {one.dtype} {list(one.shape)}")
            dispatch.check_device(f"{name}[{number}]", one, "students[0]", students[0])
    if mask.dtype != torch.bool or mask.shape != shape[:-1]:
        raise ValueError(f"mask must be bool {list(shape[:-1])}, not {mask.dtype} {list(mask.shape)}")
    dispatch.check_device("mask", mask, "students[0]", students[0])
    found: Tensor = _HiddenLosses.apply(kind, [t.detach() for t in teachers], weights, mask, *students)
    return found


def _implementation(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> ModuleType:
    width, dtypes = students[0].shape[-1], {t.dtype for t in (*students, *teachers)}
    dtype = torch.float64 if torch.float64 in dtypes else students[0].dtype
    too_wide = f"states of {width} values are wider than {WIDEST}" if width > WIDEST else ""
    if not dispatch.runs_triton("hidden_losses", students[0].device, dtype, too_wide)[0]:
        return rows_torch
    from megadistill.kernels.hidden_losses import rows_triton

    return rows_triton


def _flat(states: Sequence[Tensor]) -> list[Tensor]:
    """[N, H] of each; a view wherever there is one."""
    return [t.flatten(0, -2) for t in states]


class _HiddenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, kind: str, teachers: Sequence[Tensor], weights: Sequence[float], mask: Tensor, *students: Tensor
    ) -> Tensor:
        ctx.save_for_backward(mask, *students, *teachers)
        ctx.kind, ctx.weights = kind, weights
        found: Tensor = _implementation(students, teachers).loss(
            kind, _flat(students), _flat(teachers), weights, mask.flatten()
        )
        return found

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        refuse_twice("hidden_losses")
        mask, *states = ctx.saved_tensors
        students, teachers = states[: len(ctx.weights)], states[len(ctx.weights) :]
        found = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in students]
        _implementation(students, teachers).gradients(
            ctx.kind, _flat(students), _flat(teachers), ctx.weights, mask.flatten(), upstream, _flat(found)
        )
        return None, None, None, None, *found
