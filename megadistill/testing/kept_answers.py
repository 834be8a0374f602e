"""A teacher whose answers are kept, and the files that they are in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megadistill.teachers.cached import CachedTeacher


def cached(folder: Path, **fields: Any) -> CachedTeacher:
    """The teacher in a folder, with answers beside it."""
    of = {"kind": "online", "path": str(folder / "teacher"), "guard": None}
    return CachedTeacher.model_validate({"kind": "cached", "dir": str(folder / "answers"), "of": of} | fields)


def files(folder: Path) -> dict[str, bytes]:
    """Name -> content."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def spoil(path: Path, at: int = -1) -> None:
    """Turn one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
