"""How files come into being whole or not at all, and how they are recognised again."""

from __future__ import annotations

import difflib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any


@contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Write `path` through a temporary neighbour: flushed to disk, then renamed; on an error nothing is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[bool]:
    """Hold the lock that a file stands for; a kill releases it. False: it is taken, and was not to be waited for."""
    with open(path, "w") as handle:
        try:
            fcntl.flock(handle, kind)
        except BlockingIOError:
            yield False
        else:
            yield True


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path) as handle:
        handle.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_line(path: Path, value: Any) -> None:
    """Append one JSON line and flush it to disk, so that it survives a kill right after."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(value, ensure_ascii=False) + "\n")
        handle.flush()
        os.fsync(handle.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON lines of `path`; a last line cut short by a kill is left out, a missing file has none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_to_umask(path: Path) -> None:
    """Give a file the permissions of any new one: safetensors writes for the owner alone, whatever the umask says."""
    any_file = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    any_file.touch()
    shutil.copymode(any_file, path)
    any_file.unlink()


def sha256_file(path: Path) -> str:
    """The hexadecimal sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """The hexadecimal sha256 of a value in canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def shipped(spec: str) -> str:
    """A path as given; `megadistill/assets/...` is found in the installed package too, wherever one stands."""
    here = Path(spec)
    if here.parts[:2] == ("megadistill", "assets") and not here.exists():
        return str(Path(__file__).resolve().parents[2] / here)
    return spec


def nearest(path: str) -> str:
    """What is there by a name much like the last one of a path that is not; empty where nothing is."""
    missing = Path(path).expanduser()
    if missing.exists() or not missing.parent.is_dir():
        return ""
    near = difflib.get_close_matches(missing.name, [entry.name for entry in missing.parent.iterdir()], n=1)
    return str(missing.parent / near[0]) if near else ""
