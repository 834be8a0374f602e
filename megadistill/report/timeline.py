"""How a run went in wall time: a bar for each attempt, what happened in it, and the loss below."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from megadistill.report.chart import MAX_POINTS
from megadistill.report.collect import is_number
from megadistill.report.numbers import number
from megadistill.report.plot import Tick, bar, dot, frame, line

Row = dict[str, Any]

MOST_NAMED = 24
"""More attempts than that stand closer together, not all with their number."""

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
    """One plot of attempts and one of the loss, by the same time; empty where nothing has a time.

    Args:
        journal, metrics: rows with `time` (ISO 8601) and `attempt`.
    """
    events = [(_seconds(row), row) for row in journal if row.get("time") and row.get("attempt") is not None]
    steps = [(_seconds(row), row) for row in metrics if row.get("time") and is_number(row.get("train/loss"))]
    if not events:
        return ""
    times = [time for time, _ in (*events, *steps)]
    first, span = min(times), max(max(times) - min(times), 1.0)
    attempts = sorted({row["attempt"] for _, row in (*events, *steps)})
    below = [(share / 4, _after(span * share / 4)) for share in range(5)]

    def at(time: float) -> float:
        return (time - first) / span

    parts, beside = [], []
    for index, attempt in enumerate(attempts):
        middle = 1 - (index + 0.5) / len(attempts)
        own = [at(time) for time, row in (*events, *steps) if row["attempt"] == attempt]
        thick = 0.3 / len(attempts)
        parts.append(bar(min(own), max(max(own) - min(own), 0.002), middle - thick, middle + thick, "attempt"))
        for time, row in events:
            if row["attempt"] == attempt and (sign := _SIGNS.get(row["event"])):
                step = f" at step {row['step']}" if row.get("step") is not None else ""
                parts.append(dot(at(time), middle, sign, f"{row['event']}{step}, {_after(time - first)}", 6))
        if len(attempts) <= MOST_NAMED or index % (len(attempts) // MOST_NAMED + 1) == 0:
            beside.append((middle, str(attempt)))
    height = min(max(22 * len(attempts), 30), 20 * MOST_NAMED)
    return frame("attempts and events by time", parts, [] if steps else below, beside, height) + (
        _losses([(at(time), row) for time, row in steps], attempts, below) if steps else ""
    )


def _losses(steps: Sequence[tuple[float, Row]], attempts: Sequence[int], below: Sequence[Tick]) -> str:
    values = sorted(row["train/loss"] for _, row in steps)
    low, high = values[0], values[int(0.98 * (len(values) - 1))]  # the first steps would flatten the rest
    spread = max(high - low, 1e-9)
    parts = []
    for attempt in attempts:
        own = [(place, row["train/loss"]) for place, row in steps if row["attempt"] == attempt]
        own = own[:: max(1, len(own) // MAX_POINTS)]
        parts.append(line([(place, (min(loss, high) - low) / spread) for place, loss in own], "c0"))
    return frame("training loss by time", parts, below, [(0, number(low)), (1, number(high))], 90)


def _seconds(row: Row) -> float:
    return datetime.fromisoformat(row["time"]).timestamp()


def _after(seconds: float) -> str:
    if 0 < seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
