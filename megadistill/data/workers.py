"""Who does the work of `prepare`: this process, or several; and how far they are."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from megadistill.core.errors import UserError

LOG_SECONDS = 10
"""How often a long stretch of work says how far it is, where there is no terminal for a bar."""

SMALL = 8_000_000
"""Bytes of work that are done sooner than processes are started."""

Log = Callable[[str], None]
Tell = Callable[[int], None]
Job = tuple[int, int, tuple[Any, ...]]
"""(number, bytes of work, arguments)."""


def cores() -> int:
    """Those that this process may use (Slurm and containers give fewer than there are)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes that live as long as `prepare`, started when there is work for more than one.

    Args:
        number: how many; 1 works in this process.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._pool: ProcessPoolExecutor | None = None
        self._done: Any = None

    def each(self, function: Callable[..., None], jobs: Sequence[Job], what: str, log: Log) -> Iterator[int]:
        """Run `function(*arguments, tell)` for every job; yields the number of each as it ends, in any order. Ending
        the iteration early leaves out what has not begun.

        Raises:
            UserError: what a job raised, or that the system killed a process.
        """
        progress = Progress(what, len(jobs), sum(size for _, size, _ in jobs), log)
        try:
            if self.number == 1 or len(jobs) == 1 or 0 < progress.size < SMALL:
                with _threads(cores()):
                    for number, size, arguments in jobs:
                        function(*arguments, progress.tell)
                        progress.ended(size)
                        yield number
            else:
                yield from self._in_processes(function, jobs, progress)
        except BrokenProcessPool:
            self.close()
            raise UserError(
                f"{what}: a process was killed",
                "probably by the system, for want of memory",
                "start it again with fewer --workers: what was finished is kept",
            ) from None
        finally:
            progress.close()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _in_processes(self, function: Callable[..., None], jobs: Sequence[Job], progress: Progress) -> Iterator[int]:
        pool = self._started()
        waiting = iter(jobs)
        running: dict[Future[None], Job] = {}
        told = self._done.value
        try:
            while True:
                for job in waiting:
                    running[pool.submit(_work, function, job[2])] = job
                    if len(running) > self.number:  # one in reserve for who ends first
                        break
                if not running:
                    return
                ended, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                progress.tell(self._done.value - told)
                told = self._done.value
                for future in ended:
                    number, size, _ = running.pop(future)
                    future.result()
                    progress.ended(size)
                    yield number
        finally:
            for future in running:
                future.cancel()
            wait(running)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # fork is not safe beside the tokenizer's threads
            self._done = context.Value("q", 0)
            threads = max(1, cores() // self.number)
            self._pool = ProcessPoolExecutor(self.number, context, _begin, (self._done, threads))
        return self._pool


class Progress:
    """How far the jobs are: a bar on a terminal, else a line now and then."""

    def __init__(self, what: str, jobs: int, size: int, log: Log) -> None:
        self.what, self.jobs, self.size, self._log = what, jobs, size, log
        self.characters = self.jobs_ended = self.size_ended = 0
        self._began = self._said = time.monotonic()
        self._ended_characters = 0
        self._bar: Any = None
        if sys.stdout.isatty():
            from rich.progress import Progress as Bar

            self._bar = Bar(transient=True)
            self._row = self._bar.add_task(what, total=1.0)
            self._bar.start()

    def tell(self, characters: int) -> None:
        self.characters += characters
        self._show()

    def ended(self, size: int) -> None:
        self.jobs_ended += 1
        self.size_ended += size
        self._ended_characters = self.characters
        self._show()

    def share(self) -> float:
        """Of the work, by bytes: those of ended jobs, and of others as many as their characters stand for."""
        if not self.size:
            return self.jobs_ended / max(1, self.jobs)
        per_byte = self._ended_characters / self.size_ended if self.size_ended and self._ended_characters else 1.0
        begun = (self.characters - self._ended_characters) / max(per_byte, 1e-9)
        return min(0.999 if self.jobs_ended < self.jobs else 1.0, (self.size_ended + begun) / self.size)

    def line(self) -> str:
        """`wiki: 12 of 41 tasks, 812 MB of text, 9.4 MB/s, 31%, 4 min left`."""
        seconds, share = time.monotonic() - self._began, self.share()
        parts = [f"{self.jobs_ended:,} of {self.jobs:,} tasks"]
        if self.characters:
            speed = self.characters / 1e6 / max(seconds, 1e-9)
            parts += [f"{self.characters / 1e6:,.0f} MB of text", f"{speed:,.1f} MB/s"]
        parts.append(f"{share:.0%}")
        if share > 0:
            left = seconds / share * (1 - share)
            parts.append(f"{left / 60:,.0f} min left" if left >= 90 else f"{left:,.0f} s left")
        return f"{self.what}: {', '.join(parts)}"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _show(self) -> None:
        if self._bar is not None:
            self._bar.update(self._row, completed=self.share(), description=self.line())
        elif time.monotonic() - self._said > LOG_SECONDS:
            self._said = time.monotonic()
            self._log(self.line())


_done: Any = None
"""In a worker process: how many characters all of them did."""


def _begin(done: Any, threads: int) -> None:
    global _done
    _done = done
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    os.environ.update(RAYON_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="true" if threads > 1 else "false")


def _leave_with_parent() -> None:
    """Who started this process was killed: nobody wants what it makes, and a successor may be making it too."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    function(*arguments, _tell)


def _tell(characters: int) -> None:
    with _done.get_lock():
        _done.value += characters


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """The tokenizer may use all cores here, whatever the environment of training says."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if number > 1 else "false"
    try:
        yield
    finally:
        os.environ.pop("TOKENIZERS_PARALLELISM")
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before
