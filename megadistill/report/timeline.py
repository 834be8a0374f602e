"""How a run went in wall time, as inline SVG: a bar for each attempt, what happened in it, and the loss below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from html import escape
from typing import Any

from megadistill.report.chart import MAX_POINTS, number

Row = dict[str, Any]

WIDTH, BAR, GAP, LOSS = 1080, 12, 8, 110
_LEFT, _RIGHT, _TOP = 52, 12, 6
_SIGNS = {
    "save": "saved",
    "signal": "stop",
    "end": "stop",
    "rollback": "bad",
    "nonfinite": "bad",
    "spike": "bad",
    "hang": "bad",
    "fallback": "bad",
    "quarantine": "bad",
    "straggler": "bad",
}


def timeline(journal: Sequence[Row], metrics: Sequence[Row]) -> str:
    """An SVG; empty where nothing has a time.

    Args:
        journal, metrics: rows with `time` (ISO 8601) and `attempt`.
    """
    events = [(_seconds(row), row) for row in journal if row.get("time") and row.get("attempt") is not None]
    steps = [(_seconds(row), row) for row in metrics if row.get("time") and _is_finite(row.get("train/loss"))]
    if not events:
        return ""
    times = [time for time, _ in (*events, *steps)]
    first, span = min(times), max(max(times) - min(times), 1.0)
    attempts = sorted({row["attempt"] for _, row in (*events, *steps)})
    height = _TOP + len(attempts) * (BAR + GAP) + (LOSS if steps else 0) + 22
    parts = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="attempts, events and loss by time">']

    def at(time: float) -> float:
        return _LEFT + (time - first) / span * (WIDTH - _LEFT - _RIGHT)

    for index, attempt in enumerate(attempts):
        y = _TOP + index * (BAR + GAP)
        own = [time for time, row in (*events, *steps) if row["attempt"] == attempt]
        width = max(at(max(own)) - at(min(own)), 2)
        parts.append(f'<text class="tick" x="{_LEFT - 6}" y="{y + BAR - 2}" text-anchor="end">{attempt}</text>')
        parts.append(
            f'<rect class="attempt" x="{at(min(own)):.1f}" y="{y}" width="{width:.1f}" height="{BAR}" rx="2"/>'
        )
        for time, row in events:
            if row["attempt"] == attempt and (sign := _SIGNS.get(row["event"])):
                step = f" at step {row['step']}" if row.get("step") is not None else ""
                tip = f"<title>{escape(str(row['event']))}{step}, {_after(time - first)}</title>"
                parts.append(f'<circle class="{sign}" cx="{at(time):.1f}" cy="{y + BAR / 2}" r="3">{tip}</circle>')
    top = _TOP + len(attempts) * (BAR + GAP)
    parts += _losses(steps, attempts, at, top) if steps else []
    for share in range(5):
        time = first + span * share / 4
        anchor = "end" if share == 4 else "middle"
        label = _after(time - first)
        parts.append(f'<text class="tick" x="{at(time):.1f}" y="{height - 6}" text-anchor="{anchor}">{label}</text>')
    return "".join([*parts, "</svg>"])


def _losses(steps: Sequence[tuple[float, Row]], attempts: Sequence[int], at: Any, top: float) -> list[str]:
    values = sorted(row["train/loss"] for _, row in steps)
    low, high = values[0], values[int(0.98 * (len(values) - 1))]  # the first steps would flatten the rest
    spread = max(high - low, 1e-9)

    def height(value: float) -> float:
        return top + LOSS - 14 - (min(value, high) - low) / spread * (LOSS - 24)

    parts = [
        f'<text class="tick" x="{_LEFT - 6}" y="{height(value) + 3:.1f}" text-anchor="end">{number(value)}</text>'
        for value in (low, high)
    ]
    for attempt in attempts:
        own = [(time, row["train/loss"]) for time, row in steps if row["attempt"] == attempt]
        own = own[:: max(1, len(own) // MAX_POINTS)]
        path = " ".join(f"{at(time):.1f},{height(loss):.1f}" for time, loss in own)
        parts.append(f'<polyline class="line c0" points="{path}"/>')
    return parts


def _is_finite(value: Any) -> bool:
    return isinstance(value, float | int) and math.isfinite(value)


def _seconds(row: Row) -> float:
    return datetime.fromisoformat(row["time"]).timestamp()


def _after(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
