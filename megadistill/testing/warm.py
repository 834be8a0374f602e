"""Processes that start at once: forked from one that has imported torch, transformers and DeepSpeed already.

Importing them takes ten seconds of a core, and tests start hundreds of processes. A fork is a process like any other:
it has its own id, environment, working directory, output and exit code, and is killed like one. What is not tested by
it is the importing itself; tests of that start their processes cold.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, Any

ROOT = str(Path(__file__).resolve().parents[2])
_READ_AT_IMPORT = ("OMP_", "MKL_", "HF_", "TRANSFORMERS_", "TORCH", "DS_", "CUDA_", "TRITON_", "LD_")


class Process:
    """As much of `subprocess.Popen` as tests use; the process is a child of the warm one."""

    def __init__(self, pid: int, connection: socket.socket, out: IO[str], err: IO[str] | None) -> None:
        self.pid, self.stdout, self.stderr = pid, out, err
        self.returncode: int | None = None
        self._connection = connection

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self._learn()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self._learn()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it still says, once it has ended."""
        said: dict[str, str] = {}

        def read(name: str, stream: IO[str] | None) -> None:
            said[name] = "" if stream is None or stream.closed else stream.read()

        readers = [
            threading.Thread(target=read, args=one, daemon=True)
            for one in zip("oe", (self.stdout, self.stderr), strict=True)
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return said.get("o", ""), said.get("e", "")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _learn(self) -> None:
        told = self._connection.recv(16)
        self.returncode = int(told) if told else -signal.SIGKILL
        self._connection.close()


class Warm:
    """The process that forks others; started when first asked for."""

    _one: Warm | None = None

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="warm-")
        self.address = os.path.join(self.folder, "socket")
        self.environ = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH", "")]))
        command = [sys.executable, "-m", "megadistill.testing.warm", self.address]
        self.server = subprocess.Popen(
            command, env={**self.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )
        assert self.server.stdout is not None
        self.server.stdout.readline()  # it is ready
        atexit.register(self.close)

    @classmethod
    def one(cls) -> Warm:
        """This process's."""
        if cls._one is None or cls._one.server.poll() is not None:
            cls._one = cls()
        return cls._one

    def suits(self, environ: dict[str, str]) -> bool:
        """Whether a process with this environment would have imported what is imported here."""
        names = {n for n in environ.keys() | self.environ.keys() if n.startswith(_READ_AT_IMPORT)}
        return all(environ.get(name) == self.environ.get(name) for name in names)

    def start(self, arguments: list[str], environ: dict[str, str], *, apart: bool) -> Process:
        """`python arguments...`, output in one pipe, or (`apart`) errors in another."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.address)
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe() if apart else (None, out_write)
        os.umask(umask := os.umask(0))
        said = {"arguments": arguments, "environ": environ, "folder": os.getcwd(), "umask": umask}
        fds = array.array("i", [out_write, err_write])
        connection.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
        connection.sendall((json.dumps(said) + "\n").encode())
        for fd in {out_write, err_write}:
            os.close(fd)
        pid = int(connection.recv(16, socket.MSG_WAITALL))
        err = None if err_read is None else os.fdopen(err_read, encoding="utf-8", errors="replace")
        return Process(pid, connection, os.fdopen(out_read, encoding="utf-8", errors="replace"), err)

    def close(self) -> None:
        self.server.kill()
        self.server.wait()
        with contextlib.suppress(OSError):
            os.unlink(self.address)
            os.rmdir(self.folder)


def serve(address: str) -> None:
    """Import everything, then fork for everyone who asks; a fork returns from here and runs what it was asked to."""
    _import()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(64)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    parent = os.getppid()
    waiting: dict[int, socket.socket] = {}
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while os.getppid() == parent:
        ready, _, _ = select.select([listener.fileno(), wake_read], [], [], 1.0)
        if wake_read in ready:
            os.read(wake_read, 4096)
            for pid in list(waiting):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    with contextlib.suppress(OSError), waiting.pop(pid) as connection:
                        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        if listener.fileno() in ready:
            connection, _ = listener.accept()
            _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(8))
            fds = array.array("i")
            fds.frombytes(ancillary[0][2])
            with connection.makefile("r") as lines:
                said = json.loads(lines.readline())
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for inherited in (listener, connection, *waiting.values()):
                    inherited.close()
                os.close(wake_read)
                os.close(wake_write)
                _become(said, list(fds))
                return
            for fd in fds:
                os.close(fd)
            waiting[pid] = connection
            connection.sendall(f"{pid:16d}".encode())


def _become(said: dict[str, Any], fds: list[int]) -> None:
    for fd, place in zip(fds, (1, 2), strict=True):
        os.dup2(fd, place)
    for fd in set(fds):
        os.close(fd)
    os.environ.clear()
    os.environ.update(said["environ"])
    os.chdir(said["folder"])
    os.umask(said["umask"])
    given = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path not in sys.path]
    sys.path[1:1] = given
    first, *rest = said["arguments"]
    if first == "-m":
        sys.argv = rest
        sys.path[0] = said["folder"]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[0] = ""
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [first, *rest]
        sys.path[0] = str(Path(first).resolve().parent)
        runpy.run_path(first, run_name="__main__")


def _import() -> None:
    import torch.utils.tensorboard  # noqa: F401
    from transformers import BertForMaskedLM, DistilBertForMaskedLM, GPT2LMHeadModel  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import megadistill.cli
    import megadistill.evaluate.heldout
    import megadistill.export.hf
    import megadistill.report.html
    import megadistill.train.loop  # noqa: F401
    from megadistill.engine.deepspeed import import_deepspeed

    import_deepspeed()
    get_checkpoint_conversion_mapping("bert")  # it compiles a thousand patterns at the first loading of a model


if __name__ == "__main__":
    serve(sys.argv[1])
