"""The CPU's own row kernel (csrc/rows.cpp): compiled on first use, in seconds, where there is a C++ compiler.

Inductor's code for the same rows took four times as long as this, and a minute to make (one core, AVX-512,
V = 30522), because each of its reductions walks over the whole block and computes the exponentials anew.
"""

from __future__ import annotations

import ctypes
import platform
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megadistill.kernels import build
from megadistill.kernels.head_losses.rows_torch import Block
from megadistill.kernels.head_losses.terms import Hard, Soft, decode, one_of_each

SOURCE = Path(__file__).with_name("csrc") / "rows.cpp"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread")


class _Arguments(ctypes.Structure):
    """`Block` of rows.cpp."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("z", "u", "z_bias", "u_bias", "labels")],
        *[(f"{kind}_{what}", ctypes.c_void_p) for what in ("coefficients", "losses") for kind in ("hard", "soft")],
        *[(name, ctypes.c_int64) for name in ("rows", "vocabulary", "z_stride", "u_stride")],
        *[(name, ctypes.c_float) for name in ("temperature", "smoothing")],
    )


def why_not(terms: str, dtype: torch.dtype) -> str:
    """Why this kernel cannot run; empty when it can."""
    if dtype == torch.float64:
        return "fp64 has no compiled rows"
    if one_of_each(terms) is None:
        return "only one forward_kl and one hard term have compiled rows"
    return library()[1]


@cache
def library() -> tuple[Any, str]:
    """The loaded library, or None and why there is none."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        return None, "no C++ compiler"
    try:
        made = build.shared_object([compiler, *FLAGS], [SOURCE], platform.machine() + _processor())
        return ctypes.CDLL(str(made)), ""
    except build.ERRORS as error:
        return None, build.why(error, SOURCE)


def _processor() -> str:
    """What -march=native depends on: a home directory may be shared by machines of several kinds."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


VALUES = 3
"""That a thread holds for every value of the row that it works on."""


def rows(block: Block) -> None:
    """In place only; fp32 only; terms of which `one_of_each` knows the places."""
    z, u, coefficients, losses = block.z, block.u, block.coefficients, block.losses
    assert block.gradient.data_ptr() == z.data_ptr()
    places = one_of_each(block.terms)
    assert places is not None
    (hard, soft), decoded = places, decode(block.terms)

    def at(tensor: Tensor | None) -> int | None:
        return None if tensor is None else tensor.data_ptr()

    hard_term, soft_term = (None if n is None else decoded[n] for n in (hard, soft))
    arguments = _Arguments(
        z=at(z),
        u=None if soft is None else at(u),
        z_bias=at(block.z_bias),
        u_bias=at(block.u_bias),
        labels=None if hard is None else at(block.labels),
        hard_coefficients=None if hard is None else at(coefficients[hard]),
        soft_coefficients=None if soft is None else at(coefficients[soft]),
        hard_losses=None if hard is None else at(losses[hard]),
        soft_losses=None if soft is None else at(losses[soft]),
        rows=z.shape[0],
        vocabulary=z.shape[1],
        z_stride=z.stride(0),
        u_stride=0 if u is None else u.stride(0),
        temperature=soft_term.temperature if isinstance(soft_term, Soft) else 1.0,
        smoothing=hard_term.smoothing if isinstance(hard_term, Hard) else 0.0,
    )
    threads = min(torch.get_num_threads(), block.at_once)
    library()[0].megadistill_rows(ctypes.byref(arguments), ctypes.c_int32(threads))
