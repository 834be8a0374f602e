"""Kernels in C++ and CUDA C++: compiled by the first process that wants them, and kept for all later ones."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path


def shared_object(command: Sequence[str], sources: Sequence[Path], machine: str = "", seconds: int = 120) -> Path:
    """The library that `command SOURCE -o FILE` makes of the first source, in the user's cache; built beside its place
    and renamed into it.

    Args:
        sources: the file that is compiled, and those that it includes.
        machine: what the result depends on besides command and sources.

    Raises:
        OSError, RuntimeError, subprocess.SubprocessError: see `why`.
    """
    identity = [*(source.read_text() for source in sources), *command, machine]
    cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = f"{sources[0].stem}-{hashlib.sha256('|'.join(identity).encode()).hexdigest()[:16]}.so"
    path = cache_home / "megadistill" / name
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=path.parent)
    except OSError:  # a home that cannot be written to: build for this process alone
        folder = tempfile.mkdtemp()
        path = Path(folder) / "kept" / path.name
        path.parent.mkdir()
    made = Path(folder) / path.name
    try:
        subprocess.run(
            [*command, str(sources[0]), "-o", str(made)], check=True, capture_output=True, text=True, timeout=seconds
        )
        made.replace(path)
    finally:
        if path.parent.name != "kept":
            shutil.rmtree(folder, ignore_errors=True)
    return path


ERRORS = (OSError, RuntimeError, subprocess.SubprocessError)  # RuntimeError: no home directory


def why(error: Exception, source: Path) -> str:
    """Why a library could not be built or loaded, in a line."""
    told = getattr(error, "stderr", None)
    lines = told.split("\n") if isinstance(told, str) else []  # bytes, where the time was up
    first = next((line for line in lines if line.strip()), str(error))
    return f"csrc/{source.name} could not be built: {first.strip()}"
