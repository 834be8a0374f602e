"""Which software is here: packages, compilers, the presets."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from megadistill.core.errors import UserError
from megadistill.doctor.checks import Finding
from megadistill.run import presets

_OPTIONAL = ("triton",)
_SHOWN = ("torch", "deepspeed", "transformers", "tokenizers", "datasets", "webdataset", "numpy", "pydantic")


def packages() -> list[Finding]:
    """Versions of what matters most, whether all that megadistill requires is installed and imports."""
    found = [Finding("python", f"{platform.python_version()}  {sys.executable}")]
    found += [Finding(name, _version(name) or "not installed") for name in ("megadistill", *_SHOWN, *_OPTIONAL)]
    missing = [name for name in _required() if _version(name) is None]
    if missing:
        found.append(Finding("missing", ", ".join(missing), "broken", "bash launch/setup.sh"))
    found.append(_imports())
    if (different := _untested()) is not None:
        text = f"{len(different)} package(s) of another version than tested"
        shown = ", ".join(different[:5]) + (", ..." if len(different) > 5 else "")
        found.append(Finding("constraints", f"{text}: {shown}" if different else "all as tested"))
    return found


def tools() -> list[Finding]:
    """Compilers and presets."""
    found = [_tool("gcc"), _tool("g++"), _tool("nvcc")]
    try:
        found.append(Finding("presets", f"{len(presets.presets())} in {presets.folder()}"))
    except UserError as error:
        found.append(Finding("presets", error.what, "note", error.why))
    return found


def _imports() -> Finding:
    """In a process of its own: what fails to import may take the process with it, and they all talk."""
    names = "torch, deepspeed, transformers, datasets, webdataset, tokenizers, sentencepiece"
    result = subprocess.run(
        [sys.executable, "-c", f"import {names}"], capture_output=True, text=True, timeout=300, check=False
    )
    if result.returncode == 0:
        return Finding("imports", "all work")
    last = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
    return Finding("imports", last, "broken", "bash launch/setup.sh")


def _required() -> list[str]:
    try:
        lines = metadata.requires("megadistill") or []
    except metadata.PackageNotFoundError:
        return []  # run from a checkout that is not installed
    return [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines if "extra ==" not in line]


def _untested() -> list[str] | None:
    """Packages whose version differs from launch/constraints.txt; None outside a checkout."""
    file = Path(__file__).resolve().parents[2] / "launch" / "constraints.txt"
    if not file.exists():
        return None
    pins = [line.split("==") for line in file.read_text(encoding="utf-8").splitlines() if "==" in line]
    found = [(name, wanted, _version(name)) for name, wanted in pins]
    return [f"{name} {here}" for name, wanted, here in found if here and here.partition("+")[0] != wanted]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _tool(name: str) -> Finding:
    path = shutil.which(name)
    if path is None:
        return Finding(name, "not found")
    result = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False)
    lines = result.stdout.strip().splitlines() or ["?"]
    return Finding(name, lines[-1] if name == "nvcc" else lines[0])
