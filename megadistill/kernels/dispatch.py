"""Which implementation every op runs on this machine, and why not another; the journal's start line records it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from megadistill.core import log

Logits = Literal["exact", "fast"]
Rows = Literal["auto", "triton", "cuda", "native", "eager"]


@dataclass(frozen=True)
class Settings:
    """What a process may choose about its kernels. The results differ in rounding only."""

    workspace_mib: int | None = None
    """Memory for everything of [rows, vocabulary] that a head-loss call holds at once: blocks of logits, of their
    gradient, and what rows without a fused kernel make of them. None: on a CPU blocks of 4 million logits of each
    model; on a GPU what 256 rows of fp32 logits of both models and 1024 of gradient take, at least 256 MiB; and at most
    32 or 256 MiB for the rest."""
    logits: Logits = "exact"
    """`exact`: fp32 logits of bf16 operands; `fast`: bf16 logits, as `nn.Linear` gives them (GPU only)."""
    rows: Rows = "auto"
    """What turns logits into gradients. On a GPU: `triton`, or `cuda`, a kernel with a single read of the logits that
    nvcc compiles at its first use, for GPUs with thread-block clusters. On a CPU: `native`, C++ that its first use
    compiles. Anywhere: `eager` PyTorch. `auto`: Triton or native where they can run; cuda has not been timed yet.
    `triton` and `eager` also hold for losses of hidden states and of relations."""
    check_labels: bool = False
    """Look at the labels on the device at every call, which waits for it. They are checked where batches are made."""

    def __post_init__(self) -> None:
        for name, values in (("logits", get_args(Logits)), ("rows", get_args(Rows))):
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(values)}, not {getattr(self, name)!r}")
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise ValueError(f"workspace_mib must be at least 1, not {self.workspace_mib}")


_settings = Settings()


def configure(**changes: Any) -> Settings:
    """Change this process's settings, and return the ones before (`configure(**vars(before))` restores them)."""
    global _settings
    before = _settings
    _settings = replace(_settings, **changes)
    return before


def settings() -> Settings:
    """This process's settings."""
    return _settings


def head_rows(hidden: Tensor, terms: str, top_k: bool) -> str:
    """What the head losses of `hidden` run: triton, cuda, native or eager; said once where that is not as it should be.

    Raises:
        ValueError: the one that was configured cannot run.
    """
    kind, reason = row_implementation(hidden.device, hidden.dtype, terms, top_k)
    if kind == "eager" and _settings.rows == "auto":
        _say(f"head losses run eager PyTorch rows: {reason}")
    return kind


def row_implementation(device: torch.device, dtype: torch.dtype, terms: str, top_k: bool) -> tuple[str, str]:
    """triton, cuda, native or eager; and the reason, or why not another.

    Raises:
        ValueError: the one that was configured cannot run.
    """
    from megadistill.kernels import native
    from megadistill.kernels.head_losses import rows_cuda

    wanted = _settings.rows
    if wanted == "eager":
        return wanted, "as configured"
    no_top_k = "top-k teachers have eager rows only" if top_k else ""
    no_triton = no_top_k or _no_triton(device, dtype)
    no_native = no_top_k or ("" if device.type == "cpu" else "not on a CPU") or native.why_not(terms, dtype)
    no_cuda = no_top_k or (rows_cuda.why_not(device, terms, dtype) if wanted == "cuda" else "")  # it may compile
    for kind, why_not in (("triton", no_triton), ("cuda", no_cuda), ("native", no_native)):
        if wanted == kind and why_not:
            raise ValueError(f"rows={kind!r} cannot run here: {why_not}; use rows='auto'")
        if wanted == kind:
            return kind, "as configured"
    if device.type == "cuda":
        timed = "a CUDA device; rows='cuda', which reads logits once, has not been timed against it"
        return ("eager", no_triton) if no_triton else ("triton", timed)
    return ("eager", no_native) if no_native else ("native", "compiled for this CPU")


def runs_triton(op: str, device: torch.device, dtype: torch.dtype, no_kernel: str = "") -> tuple[bool, str]:
    """Whether an op that has Triton and PyTorch only runs Triton; and the reason. A GPU's fallback is logged once.

    Args:
        op: its name, for the log.
        no_kernel: why there is no kernel for what it is asked, if there is none.

    Raises:
        ValueError: Triton was configured and cannot run.
    """
    why_not = no_kernel or _no_triton(device, dtype)
    if _settings.rows == "triton":
        if why_not:
            raise ValueError(f"rows='triton' cannot run {op} here: {why_not}; use rows='auto'")
        return True, "as configured"
    if _settings.rows == "eager":
        return False, "as configured"
    if device.type != "cuda":
        return False, f"on {device.type} there is PyTorch only"
    if why_not:
        _say(f"{op} runs in PyTorch: {why_not}")
        return False, why_not
    return True, "a CUDA device"


def check_device(name: str, value: Tensor, states: str, like: Tensor) -> None:
    """
    Raises:
        ValueError: `value` is not where `like` is, which errors call `states`. A plan's states are on the meta device,
            its integers are not: they have numbers.
    """
    if value.device != like.device and not like.is_meta:
        raise ValueError(f"{name} is on {value.device}, {states} on {like.device}")


@cache
def _say(text: str) -> None:
    """Log it, once a process."""
    log.get().warning(text)


def _no_triton(device: torch.device, dtype: torch.dtype) -> str:
    """Why Triton cannot run; empty when it can."""
    if dtype == torch.float64:
        return "fp64 has no Triton kernel"
    if not _triton_found():
        return "triton is not installed"
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (7, 0):
        return f"compute capability {torch.cuda.get_device_capability(device)} is below 7.0"
    return ""


@cache
def _triton_found() -> bool:
    return importlib.util.find_spec("triton") is not None


def implementations(device: torch.device) -> dict[str, str]:
    """Op name -> the implementation that runs on `device`, with the reason."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    kind, reason = row_implementation(device, dtype, "forward_kl:2.0:0.5,hard:0.0", False)
    found = {"head_losses": f"blocks of logits, gradient in forward, {kind} rows ({reason})"}
    for op in ("hidden_losses", "relation_kl"):
        triton, reason = runs_triton(op, device, dtype)
        found[op] = f"{'triton' if triton else 'eager'} ({reason})"
    return found
