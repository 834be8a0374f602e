"""How a curve becomes inline SVG: axes with round numbers, one line a run, marks where a run was resumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 520, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 26
MAX_POINTS = 400
"""More are averaged in buckets: a line cannot show more than its pixels."""


@dataclass(frozen=True)
class Line:
    """One curve. `color` is the number of a colour that the page defines; dashed lines are for comparison."""

    label: str
    points: Points
    color: int
    dashed: bool = False


def chart(title: str, lines: Sequence[Line], marks: Sequence[float] = (), log: bool = False) -> str:
    """An SVG of all lines on common axes; empty when none of them has a point.

    Args:
        marks: x positions of thin vertical lines.
        log: logarithmic y, where all values allow it.
    """
    lines = [Line(line.label, _thinned(line.points), line.color, line.dashed) for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    log = log and min(ys) > 0
    x_low, x_high = min(xs), max(xs)
    y_ticks = _log_ticks(min(ys), max(ys)) if log else _ticks(min(ys), max(ys), 5)
    y_low, y_high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def at_x(x: float) -> float:
        share = (x - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    def at_y(y: float) -> float:
        low, high, value = (math.log(y_low), math.log(y_high), math.log(y)) if log else (y_low, y_high, y)
        share = (value - low) / (high - low) if high > low else 0.5
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)} by step">']
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{at_y(y) + 3.5:.1f}" text-anchor="end">{number(y)}</text>')
    for x in _ticks(x_low, x_high, 6):
        if x_low <= x <= x_high:
            place = f'x="{at_x(x):.1f}" y="{HEIGHT - 8}"'
            anchor = "end" if at_x(x) > WIDTH - 30 else "middle"
            parts.append(f'<text class="tick" {place} text-anchor="{anchor}">{number(x)}</text>')
    for mark in marks:
        if x_low <= mark <= x_high:
            place = f'x1="{at_x(mark):.1f}" x2="{at_x(mark):.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"'
            parts.append(f'<line class="mark" {place}><title>resumed at step {number(mark)}</title></line>')
    for line in lines:
        style = f'class="line c{line.color}{" dashed" if line.dashed else ""}"'
        last_x, last_y = line.points[-1]
        tip = f"<title>{escape(line.label)}: {number(last_y)} at step {number(last_x)}</title>"
        path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line.points)
        if len(line.points) > 1:
            parts.append(f'<polyline {style} points="{path}">{tip}</polyline>')
        if len(line.points) < 25:  # few enough to be measurements of their own
            for x, y in line.points:
                place = f'cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="2.5"'
                tip = f"<title>{escape(line.label)}: {number(y)} at step {number(x)}</title>"
                parts.append(f'<circle class="dot c{line.color}" {place}>{tip}</circle>')
    return "".join([*parts, "</svg>"])


def number(value: float) -> str:
    """A number as people read it: four significant digits, thousands apart, no needless exponent."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) < 1e-3:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


def _thinned(points: Points) -> Points:
    if len(points) <= MAX_POINTS:
        return points
    size = math.ceil(len(points) / MAX_POINTS)
    buckets = [points[start : start + size] for start in range(0, len(points), size)]
    return [(bucket[-1][0], sum(y for _, y in bucket) / len(bucket)) for bucket in buckets]


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers that span low to high."""
    if high <= low:
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    raw = (high - low) / about
    unit = 10 ** math.floor(math.log10(raw))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of each decade that is touched; ordinary ticks where that gives too few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
    inside = [tick for tick in every if low <= tick <= high]
    if len(inside) < 3:
        return [tick for tick in _ticks(low, high, 5) if tick > 0] or [low, high]
    return inside if len(inside) <= 8 else [tick for tick in inside if f"{tick:e}".startswith("1")]
