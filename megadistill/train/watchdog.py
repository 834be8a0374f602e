"""What ends a rank that no longer moves, with the stacks of all its threads, and says where it stood."""

from __future__ import annotations

import faulthandler
import json
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO

SLACK = 10.0
"""A step may take so many times the longest one before it."""

HEARTBEAT_SECONDS = 10.0
"""How often a rank at least says that it lives, while it does."""


class Watchdog:
    """`enter` says what this rank does now. What stays in one phase for too long is hung: a timer thread of the
    interpreter's C code then writes all Python stacks and leaves with code 1, even while something holds the GIL.
    A dead rank ends the step of its launcher, and the peers that wait for it, with their own stacks.
    """

    def __init__(self, run: Path, attempt: int, rank: int, step_seconds: float, other_seconds: float) -> None:
        """
        Args:
            run: the run directory; gets `heartbeats/rank-0007.json` and `logs/hung-a0003-rank-0007.txt`.
            step_seconds: limit of a step, raised to SLACK times the longest step of this attempt.
            other_seconds: limit of every other phase, and of the first two steps: the first one compiles and allocates,
                so there is none before the second that tells how long a step takes.
        """
        self.step_seconds, self.other_seconds = step_seconds, other_seconds
        self.stacks = hung_file(run, attempt, rank)
        self.heartbeat = run / "heartbeats" / f"rank-{rank:04d}.json"
        self.heartbeat.parent.mkdir(exist_ok=True)
        self._output: IO[str] = open(self.stacks, "w", encoding="utf-8")  # noqa: SIM115 the timer writes to it
        self._phase, self._since, self._said = "", time.monotonic(), -HEARTBEAT_SECONDS
        self._patience = 0.0
        self.longest_step = 0.0
        """Seconds, of this attempt's steps but the first."""
        self._steps = 0
        self.doing = ""
        """The phase that this rank is in, as in `step 12` or `evaluate and save, step 12`."""

    def enter(self, phase: str, step: int, patience: float = 0.0) -> None:
        """This rank now does `phase` (`step`, or anything else) of step number `step`, and may take so many seconds
        more than usual for it."""
        now = time.monotonic()
        if self._phase == "step":
            self._steps += 1
            self.longest_step = max(self.longest_step, now - self._since) if self._steps > 1 else 0.0
        if phase != self._phase or now - self._said >= HEARTBEAT_SECONDS:
            self._say(phase, step, now)
        self._phase, self._since, self._patience = phase, now, patience
        self.doing = f"step {step}" if phase == "step" else f"{phase}, step {step}"
        faulthandler.dump_traceback_later(self.limit(), exit=True, file=self._output)

    def limit(self) -> float:
        """Seconds that the phase now entered may take."""
        if self._phase == "step" and self._steps > 1:
            return max(self.step_seconds, SLACK * self.longest_step)
        return max(self.step_seconds, self.other_seconds) + self._patience

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Let this rank take as long as it likes again."""
        faulthandler.cancel_dump_traceback_later()
        self._output.close()
        self.stacks.unlink(missing_ok=True)
        self._say("left" if kind is None else f"left with {kind.__name__}", -1, time.monotonic())

    def _say(self, phase: str, step: int, now: float) -> None:
        """Not flushed to disk, and not in turn: it is for who looks now, and must not cost the step anything."""
        said = {
            "phase": phase,
            "step": step,
            "host": socket.gethostname(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.heartbeat.write_text(json.dumps(said) + "\n", encoding="utf-8")
        self._said = now


def hung_file(run: Path, attempt: int, rank: int) -> Path:
    """Where a hung rank's stacks are; not there, or empty, where it did not hang."""
    return run / "logs" / f"hung-a{attempt:04d}-rank-{rank:04d}.txt"


def hung_ranks(run: Path, attempt: int) -> list[int]:
    """The ranks of an attempt that were ended by their watchdog."""
    files = sorted((run / "logs").glob(f"hung-a{attempt:04d}-rank-*.txt"))
    return [int(file.stem.rpartition("-")[2]) for file in files if file.stat().st_size]


def last_heard(run: Path) -> dict[int, str]:
    """Rank -> what it last said that it does, as in `step 12 on node7 at 10:05:03`."""
    heard: dict[int, str] = {}
    for file in (run / "heartbeats").glob("rank-*.json"):
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
            step = f" {said['step']}" if said["step"] >= 0 else ""
            rank = int(file.stem.rpartition("-")[2])
            heard[rank] = f"{said['phase']}{step} on {said.get('host', '?')} at {said['time'][11:19]}"
        except (OSError, ValueError, KeyError):
            continue  # it is being replaced
    return heard
