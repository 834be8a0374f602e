"""Where a checkpoint is written while training goes on: one piece of work at a time, and its failure comes back."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread

from megadistill.core import dist


class Publisher:
    """Does what it is given in a thread, with collectives of its own; every rank has one and gives it the same."""

    def __init__(self, asynchronous: bool, timeout_seconds: float) -> None:
        """A collective.

        Args:
            asynchronous: False: `start` does the work itself and returns when it is done.
            timeout_seconds: of the thread's collectives.
        """
        self.asynchronous = asynchronous
        self._lane = dist.new_lane(timeout_seconds) if asynchronous else None
        self._thread: Thread | None = None
        self._failure: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Wait for the work before it, and begin this."""
        self.wait()
        if not self.asynchronous:
            return work()
        # a daemon: a process that has to end now leaves a temporary folder behind, as after a kill
        self._thread = Thread(target=self._do, args=(work,), name="publish", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is under way.

        Raises:
            whatever the work raised; on every rank alike where it was done `together`.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    @property
    def failed(self) -> bool:
        """Whether `wait` would raise now; other ranks may learn of it later."""
        return self._failure is not None

    def _do(self, work: Callable[[], None]) -> None:
        try:
            with dist.lane(self._lane):
                work()
        except BaseException as failure:
            self._failure = failure
