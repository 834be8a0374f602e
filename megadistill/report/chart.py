"""How a curve becomes a plot: axes with round numbers, one line a run, marks where a run was resumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from megadistill.report.numbers import log_ticks, number, short, ticks
from megadistill.report.plot import dot, frame, line, upright

Points = Sequence[tuple[float, float]]

MAX_POINTS = 400
"""More are averaged in buckets: a line cannot show more than its pixels."""


@dataclass(frozen=True)
class Line:
    """One curve. `color` is the number of a colour that the page defines; dashed lines are for comparison."""

    label: str
    points: Points
    color: int
    dashed: bool = False

    @property
    def style(self) -> str:
        return f"c{self.color}{' dashed' if self.dashed else ''}"


@dataclass(frozen=True)
class Plot:
    """A drawing with what stands around it."""

    title: str
    drawing: str
    """HTML."""
    legend: Sequence[tuple[Line, float | None]]
    """What each line is, and the number that says most about it."""
    note: str = ""


def chart(title: str, lines: Sequence[Line], marks: Sequence[float] = (), log: bool = False) -> str:
    """All lines on common axes, by step; empty when none of them has a point.

    Args:
        marks: x positions of thin vertical lines.
        log: logarithmic y, where all values allow it.
    """
    lines = [replace(line, points=_thinned(line.points)) for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    log = log and min(ys) > 0
    left, right = min(xs), max(xs)
    y_ticks = log_ticks(min(ys), max(ys)) if log else ticks(min(ys), max(ys), 4)
    bottom, top = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def at(x: float) -> float:
        return (x - left) / (right - left) if right > left else 0.5

    def up(y: float) -> float:
        low, high, value = (math.log(bottom), math.log(top), math.log(y)) if log else (bottom, top, y)
        return (value - low) / (high - low) if high > low else 0.5

    parts = [upright(at(mark), f"resumed at step {number(mark)}") for mark in marks if left <= mark <= right]
    for one in lines:
        last_x, last_y = one.points[-1]
        if len(one.points) > 1:
            tip = f"{one.label}: {number(last_y)} at step {number(last_x)}"
            parts.append(line([(at(x), up(y)) for x, y in one.points], one.style, tip))
        if len(one.points) < 25 and not one.dashed:  # few enough to be measurements of their own
            for x, y in one.points:
                parts.append(dot(at(x), up(y), one.style, f"{one.label}: {number(y)} at step {number(x)}"))
    below = [(at(x), short(x)) for x in ticks(left, right, 5, whole=True) if left <= x <= right]
    beside = [(up(y), short(y)) for y in y_ticks]
    return frame(f"{title} by step", parts, below, beside)


def _thinned(points: Points) -> Points:
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / MAX_POINTS)
    buckets = [points[start : start + size] for start in range(0, len(points), size)]
    return [(bucket[-1][0], sum(y for _, y in bucket) / len(bucket)) for bucket in buckets]
