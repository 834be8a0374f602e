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


def free_port() -> int:
    """A TCP port that is free right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def launch(arguments: list[str], world_size: int, environ: dict[str, str] | None = None) -> list[subprocess.Popen[str]]:
    """Start `python arguments...` once per rank, connected to one another."""
    port = str(free_port())
    root = str(Path(__file__).resolve().parents[2])
    processes = []
    for rank in range(world_size):
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")])),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            **(environ or {}),
        }
        env.pop("LOCAL_SIZE", None)
        processes.append(
            subprocess.Popen(
                [sys.executable, *arguments],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    return processes


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
