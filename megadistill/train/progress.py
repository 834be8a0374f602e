"""How far the run is, for a person watching: one line an interval, and on a terminal a bar below them."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from megadistill.core import log


class Progress:
    """Shows the progress of one attempt; on rank 0 only."""

    def __init__(self, total_steps: int, start_step: int = 0) -> None:
        """
        Args:
            total_steps: the step at which the run ends.
            start_step: the step that this attempt resumed from.
        """
        self.total_steps = total_steps
        self._start_step = start_step
        self._timed_from: tuple[int, float] | None = None
        self._bar: Any = None
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.progress import Progress as Bar

            self._bar = Bar(transient=True, console=Console(soft_wrap=True))  # else it breaks commands to be copied
            self._task = self._bar.add_task("training", total=total_steps, completed=start_step)
            self._bar.start()

    def update(self, step: int, values: Mapping[str, float]) -> None:
        """Log the line of `step`."""
        log.get().info(line(step, self.total_steps, values, self._seconds_left(step)))
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _seconds_left(self, step: int) -> float | None:
        """From the mean pace since this attempt's first line, which leaves the slow first step out."""
        now = time.monotonic()
        if self._timed_from is None:
            self._timed_from = (step, now)
        first_step, first_time = self._timed_from
        if step == first_step:
            return None
        return (now - first_time) / (step - first_step) * (self.total_steps - step)


def line(step: int, total_steps: int, values: Mapping[str, float], seconds_left: float | None = None) -> str:
    """`step 1200/50000 2.4% | loss 2.91 soft_ce 2.41 | teacher 1.80 | lr 4.8e-04 | 61k tok/s | eta 9h12m`."""
    parts = [f"step {step}/{total_steps} {100 * step / total_steps:.1f}%"]
    losses = [f"loss {values['train/loss']:.3f}"] if "train/loss" in values else []
    losses += [f"{name} {_loss(value)}" for name, value in _under("train/objective/", values)]
    parts.append(" ".join(losses))
    teacher = [f"{name} {_loss(value)}" for name, value in _under("teacher/", values)]
    parts.append(" ".join(["teacher", *teacher]).replace("teacher loss", "teacher") if teacher else "")
    if "train/learning_rate" in values:
        parts.append(f"lr {values['train/learning_rate']:.1e}")
    if "train/tokens_per_second" in values:
        parts.append(f"{_short(values['train/tokens_per_second'])} tok/s")
    if seconds_left is not None:
        parts.append(f"eta {duration(seconds_left)}")
    return " | ".join(part for part in parts if part)


def duration(seconds: float) -> str:
    """`42s`, `3m07s`, `9h12m`, `2d04h`."""
    whole = round(seconds)
    for size, unit, small, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // small:02d}{smaller}"
    return f"{whole}s"


def _under(prefix: str, values: Mapping[str, float]) -> list[tuple[str, float]]:
    return [(name.removeprefix(prefix), value) for name, value in values.items() if name.startswith(prefix)]


def _loss(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 0.1 else f"{value:.2f}"


def _short(value: float) -> str:
    """Three digits or so: `850`, `61.2k`, `1.3M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.1f}{unit}"
    return f"{value:.0f}"
