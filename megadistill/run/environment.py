"""What the code and the machine under a run are, and which differences end bitwise equality."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import megadistill

_PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy", "triton")


def describe(world_size: int) -> dict[str, Any]:
    """Plain values: versions, threads, hardware; what is under `numerics` can change a sum's last bit."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "numerics": {
            "world size": world_size,
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version() if gpus else None,
            "gpu": gpus[0] if gpus else None,
            "cpu": processor(),
            "cpu capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "megadistill sources": source_hash(),
        },
        "code": {"version": megadistill.__version__, "git": _git_commit(), "sources": source_hash()},
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "gpus": gpus,
        "variables": {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")},
        "torch config": torch.__config__.show().splitlines(),
    }


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Why a run described by `before` will not go on bit for bit under `now`."""
    old, new = before["numerics"], now["numerics"]
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return [f"{name}: {_short(old.get(name))} before, {_short(new.get(name))} now" for name in names]


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if re.fullmatch("[0-9a-f]{64}", text) else text


def source_hash() -> str:
    """The sha256 of all Python sources of the package, names included."""
    package = Path(megadistill.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """What this machine's CPU calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _git_commit() -> str | None:
    """The commit checked out, with `+` when there are changes on top; None outside a checkout."""
    checkout = Path(megadistill.__file__).parents[1]
    if not (checkout / ".git").exists():
        return None
    try:
        commit = _git(checkout, "rev-parse", "HEAD")
        return commit + ("+" if _git(checkout, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(checkout: Path, *arguments: str) -> str:
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
