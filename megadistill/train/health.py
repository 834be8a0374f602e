"""Whether a step went well, and what to do when several in a row did not: go back, and leave their data out."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from megadistill.core.errors import Diverged
from megadistill.run.sections import TrainConfig
from megadistill.train.ledger import Report

WINDOW = 100
"""A spike is told by so many sound steps before it; the first so many of a run are not judged by that."""


class RollBack(Exception):
    """Steps have to be undone: the run goes on from a checkpoint before them, in a new attempt."""

    def __init__(self, first: int, last: int, why: str, wrong: str = "") -> None:
        """
        Args:
            first, last: the steps, counted from 1, that are undone and whose data is left out.
            wrong: what `Health.judge` found in the last one; nothing where a person asked.
        """
        super().__init__(f"steps {first} to {last} are undone: {why}")
        self.first, self.last, self.why, self.wrong = first, last, why, wrong


class Health:
    """Looks at every step's report, the same on all ranks."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.losses: deque[float] = deque(maxlen=WINDOW)
        """Of the newest sound steps; travels with the checkpoint, so that a resumed run judges as it would have."""
        self._bad: list[int] = []

    def judge(self, report: Report) -> str:
        """What was wrong with a step: `nonfinite`, `spike` or nothing.

        Raises:
            RollBack: this was one bad step too many in a row, or one whose update has spoilt the parameters.
        """
        wrong = self._wrong(report)
        if not wrong:
            self._bad.clear()
            self.losses.append(report.loss)
            return wrong
        self._bad.append(report.step)
        spoilt = wrong == "nonfinite" and report.applied
        limit = self.config.max_nonfinite_steps if wrong == "nonfinite" else self.config.spike_steps
        if spoilt or len(self._bad) >= limit:
            why = f"{len(self._bad)} bad step(s) in a row, the last a {wrong} one with loss {report.loss:.6g}"
            raise RollBack(self._bad[0], report.step, why, wrong)
        return wrong

    def _wrong(self, report: Report) -> str:
        if not (report.finite and report.applied):
            return "nonfinite"
        if self.config.spike_sigmas is None or len(self.losses) < WINDOW:
            return ""
        mean, spread = statistics.fmean(self.losses), statistics.pstdev(self.losses)
        return "spike" if report.loss > mean + self.config.spike_sigmas * spread else ""

    def state(self) -> list[str]:
        """For a checkpoint's manifest; exact."""
        return [loss.hex() for loss in self.losses]

    def restore(self, state: Iterable[str]) -> None:
        """What `state` returned."""
        self.losses.clear()
        self.losses.extend(map(float.fromhex, state))


def give_up(rollback: RollBack, events: Sequence[Mapping[str, Any]], limit: int, oldest: int) -> None:
    """
    Args:
        events: the run's journal.
        limit: how often a run may go back by itself.
        oldest: the step of the oldest checkpoint.

    Raises:
        Diverged: it has done so often enough, or cannot go back so far.
    """
    done = sum(event["event"] == "rollback" and not event["asked_for"] for event in _of_owners(events))
    if oldest >= rollback.first == 1:
        raise Diverged(
            f"step {rollback.last}: {rollback.why}",
            "it went wrong from step 1 on, before which there is nothing to go back to",
            "look at the data of these steps, the weights that training begins with, the objectives and "
            "engine.precision",
        )
    if oldest >= rollback.first:
        raise Diverged(
            f"step {rollback.last}: {rollback.why}",
            f"it went wrong from step {rollback.first} on, and the oldest checkpoint is of step {oldest}",
            "keep more of them (checkpoint.keep, checkpoint.keep_every_steps) and start over with --fresh",
        )
    if done >= limit:
        raise Diverged(
            f"step {rollback.last}: {rollback.why}",
            f"{done} rollback(s) have not helped (train.max_rollbacks={limit}); the checkpoints are intact",
            "lower optimizer.learning_rate or optimizer.gradient_clipping, or look at the data of that step",
        )


def skipped(events: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """The windows of draws that the run leaves out, by its journal."""
    back = (event for event in _of_owners(events) if event["event"] == "rollback")
    return [(start, stop) for event in back for start, stop in [event["skips"]]]


def undone_from(events: Iterable[Mapping[str, Any]]) -> float:
    """The step from which on the last rollback undoes everything; infinite when an attempt has gone on since."""
    first = math.inf
    for event in _of_owners(events):
        first = min(first, event["first"]) if event["event"] == "rollback" else math.inf
    return first


def _of_owners(events: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The starts, resumes and rollbacks of attempts that nobody had taken the run over from: what an attempt that lives
    on beside its successor writes is not the run's."""
    owner = 0
    for event in events:
        if event["event"] in ("start", "resume", "rollback") and event["attempt"] >= owner:
            owner = event["attempt"]
            yield event
