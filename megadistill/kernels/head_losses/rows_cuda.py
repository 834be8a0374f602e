"""From a block of logits to each row's losses and their gradient with a single read of the logits: CUDA C++
(csrc/rows.cu) for GPUs with thread-block clusters, which nvcc compiles on first use.

Triton's kernel reads every logit twice, the second time from the cache as long as the rows in flight fit it; a cluster
holds its row in the shared memory of several multiprocessors instead. Not run on a GPU yet, so off unless asked for
(`dispatch.configure(rows="cuda")`): the tests compile it for sm_90 and run its arithmetic and its exchange on threads
of a CPU; `tools/bench_rows.py` compares the two on a GPU.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megadistill.kernels import build
from megadistill.kernels.head_losses.rows_torch import Block
from megadistill.kernels.head_losses.terms import Hard, Soft, decode, one_of_each

SOURCES = [Path(__file__).parents[1] / "csrc" / name for name in ("rows.cu", "one_read.h")]
FLAGS = ("-arch=sm_90", "-std=c++17", "-O3", "-ftz=true", "-Xcompiler=-fPIC", "-shared")
CAPABILITY = (9, 0)

THREADS = 256
"""Of one thread block; at most 512."""
SLICE_KIB = 72
"""Of a row's two fp32 slices in one block: three blocks share a multiprocessor, one computing while others load."""
MOST_KIB = 227
"""Shared memory of one block on compute capability 9.0."""
CLUSTERS = (1, 2, 4, 8, 16)

_TYPES = {
    (torch.float32, torch.float32): 0,
    (torch.float32, torch.bfloat16): 1,
    (torch.float32, torch.float16): 2,
    (torch.bfloat16, torch.bfloat16): 3,
    (torch.float16, torch.float16): 4,
}


class _Arguments(ctypes.Structure):
    """`Block` of one_read.h."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("z", "u", "gradient", "z_bias", "u_bias", "labels")],
        *[(f"{kind}_{what}", ctypes.c_void_p) for what in ("coefficients", "losses") for kind in ("hard", "soft")],
        *[(name, ctypes.c_int64) for name in ("rows", "vocabulary", "z_stride", "u_stride", "gradient_stride")],
        ("aligned", ctypes.c_int64),
        *[(name, ctypes.c_float) for name in ("temperature", "smoothing")],
    )


def why_not(device: torch.device, terms: str, dtype: torch.dtype) -> str:
    """Why this kernel cannot run; empty when it can."""
    if device.type != "cuda":
        return "not on a CUDA device"
    found = torch.cuda.get_device_capability(device)
    if found < CAPABILITY:
        return f"compute capability {found} has no thread-block clusters; {CAPABILITY} has"
    if dtype == torch.float64:
        return "fp64 has no compiled rows"
    if one_of_each(terms) is None:
        return "only one forward_kl and one hard term have compiled rows"
    return library()[1]


def compiler() -> str | None:
    """nvcc: $CUDA_HOME's, the PATH's, that of the wheels `nvidia-cuda-nvcc`, or the usual folder's."""
    places = [Path(os.environ["CUDA_HOME"]) / "bin"] if os.environ.get("CUDA_HOME") else []
    places += map(Path, filter(None, os.environ.get("PATH", "").split(os.pathsep)))
    wheels = importlib.util.find_spec("nvidia")
    places += [Path(p) / "cu13" / "bin" for p in (wheels.submodule_search_locations or [] if wheels else [])]
    return shutil.which("nvcc", path=os.pathsep.join(map(str, [*places, "/usr/local/cuda/bin"])))


def command(nvcc: str) -> list[str]:
    """How nvcc is called; its wheels keep libraries in a folder that it does not look into."""
    return [nvcc, *FLAGS, f"-L{Path(nvcc).resolve().parents[1] / 'lib'}"]


@cache
def library() -> tuple[Any, str]:
    """The loaded library, or None and why there is none."""
    nvcc = compiler()
    if nvcc is None:
        return None, "no nvcc (CUDA_HOME, PATH, or pip install 'megadistill[cuda]')"
    try:
        loaded = ctypes.CDLL(str(build.shared_object(command(nvcc), SOURCES, seconds=600)))
    except build.ERRORS as error:
        return None, build.why(error, SOURCES[0])
    loaded.megadistill_cuda_error.restype = ctypes.c_char_p
    return loaded, ""


def blocks_per_row(vocabulary: int, both: bool) -> int:
    """Thread blocks that share a row.

    Args:
        both: student and teacher logits are kept, not the student's alone.

    Raises:
        ValueError: even 16 blocks do not hold a row.
    """
    per_column = 4 * (1 + both)
    for size in CLUSTERS:
        if -(-vocabulary // size) * per_column <= SLICE_KIB * 1024:
            return size
    most = CLUSTERS[-1] * (MOST_KIB - 4) * 1024 // per_column  # some is taken by sums and rounding
    if vocabulary > most:
        raise ValueError(f"rows='cuda' holds a vocabulary of {most} entries at most, not {vocabulary}; use rows='auto'")
    return CLUSTERS[-1]


def rows(block: Block) -> None:
    """In place or not; terms of which `one_of_each` knows the places.

    Raises:
        ValueError: the vocabulary is too large.
        RuntimeError: CUDA refuses the launch.
    """
    places = one_of_each(block.terms)
    assert places is not None
    (hard_at, soft_at), decoded = places, decode(block.terms)
    z, u, gradient, coefficients, losses = block.z, block.u, block.gradient, block.coefficients, block.losses
    hard: Any = None if hard_at is None else decoded[hard_at]
    soft: Any = None if soft_at is None else decoded[soft_at]
    assert hard is None or isinstance(hard, Hard)
    assert soft is None or isinstance(soft, Soft)
    wide = [t for t in (z, u if soft else None, gradient) if t is not None]
    biases = [t for t in (block.z_bias, block.u_bias if soft else None) if t is not None]
    aligned = all(t.data_ptr() % 16 == 0 for t in (*wide, *biases))
    aligned = aligned and all(t.stride(0) * t.element_size() % 16 == 0 for t in wide)

    def at(tensor: Tensor | None) -> int | None:
        return None if tensor is None else tensor.data_ptr()

    arguments = _Arguments(
        z=at(z),
        u=at(u) if soft else None,
        gradient=at(gradient),
        z_bias=at(block.z_bias),
        u_bias=at(block.u_bias) if soft else None,
        labels=at(block.labels) if hard else None,
        hard_coefficients=at(coefficients[hard_at]) if hard else None,
        soft_coefficients=at(coefficients[soft_at]) if soft else None,
        hard_losses=at(losses[hard_at]) if hard else None,
        soft_losses=at(losses[soft_at]) if soft else None,
        rows=z.shape[0],
        vocabulary=z.shape[1],
        z_stride=z.stride(0),
        u_stride=u.stride(0) if u is not None and soft else 0,
        gradient_stride=gradient.stride(0),
        aligned=aligned,
        temperature=soft.temperature if soft else 1.0,
        smoothing=hard.smoothing if hard else 0.0,
    )
    cuda = library()[0]
    types, share = _TYPES[z.dtype, gradient.dtype], blocks_per_row(z.shape[1], soft is not None)
    stream = torch.cuda.current_stream(z.device).cuda_stream if z.is_cuda else 0
    with torch.cuda.device(z.device) if z.is_cuda else nullcontext():  # the launch changes the current device
        code = cuda.megadistill_rows_once(
            ctypes.byref(arguments), types, share, THREADS, z.get_device(), ctypes.c_void_p(stream)
        )
    if code:
        raise RuntimeError(f"rows='cuda' could not be launched: {cuda.megadistill_cuda_error(code).decode()}")
