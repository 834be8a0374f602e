"""Several real processes that form one gloo group, for tests of what ranks do together."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from megadistill.testing.warm import ROOT, Warm


def free_port() -> int:
    """A TCP port that is free right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(
    arguments: list[str], world_size: int, environ: dict[str, str] | None = None, *, cold: bool = False
) -> list[Any]:
    """Start `python arguments...` once per rank, connected to one another.

    Args:
        cold: have each import everything itself (see `warm`).

    Returns:
        a `subprocess.Popen` or alike for each.
    """
    port = str(free_port())
    ranks = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        _start(arguments, {**ranks, "RANK": str(rank), "LOCAL_RANK": str(rank), **(environ or {})}, cold=cold)
        for rank in range(world_size)
    ]


def finish(
    arguments: list[str], environ: dict[str, str] | None = None, *, timeout: float = 300, cold: bool = False
) -> subprocess.CompletedProcess[str]:
    """`python arguments...`, alone and to its end, whatever its exit code."""
    process = _start(arguments, environ or {}, apart=True, cold=cold)
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def megadistill(
    *arguments: object, environ: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """`megadistill arguments...`, to its end."""
    return finish(["-m", "megadistill", *map(str, arguments)], environ, timeout=timeout)


def _start(arguments: list[str], environ: dict[str, str], *, apart: bool = False, cold: bool = False) -> Any:
    path = os.pathsep.join(filter(None, [ROOT, environ.get("PYTHONPATH", os.environ.get("PYTHONPATH", ""))]))
    # one's own world is not the one of a test that was started in a job
    outer = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_SIZE")}
    env = {**outer, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **environ, "PYTHONPATH": path}
    if not cold and (warm := Warm.one()).suits(env):
        return warm.start(arguments, env, apart=apart)
    err = subprocess.PIPE if apart else subprocess.STDOUT
    return subprocess.Popen([sys.executable, *arguments], env=env, stdout=subprocess.PIPE, stderr=err, text=True)


def run(
    arguments: list[str], world_size: int, environ: dict[str, str] | None = None, timeout: float = 240
) -> list[str]:
    """The output of every rank; an AssertionError shows all of it when a rank fails."""
    processes = launch(arguments, world_size, environ)
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    codes = [process.returncode for process in processes]
    assert codes == [0] * world_size, f"exit codes {codes}\n" + "\n".join(outputs)
    return outputs


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: writing fails, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def linger(folder: Path, *_: object) -> None:
    """Leave a file named by this process's id, and stay for a minute."""
    (folder / str(os.getpid())).touch()
    time.sleep(60)


def die(*_: object) -> None:
    """End this process as the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
