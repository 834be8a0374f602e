"""How far a run is, in a few lines for a terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from megadistill.report.collect import collect, is_number, warnings
from megadistill.report.numbers import number
from megadistill.report.tables import held_out

_LAST_EVENTS = 5
_SHOWN = ("perplexity", "loss", "accuracy")


def describe(path: Path) -> str:
    """State, progress, newest numbers, checkpoints and last events of the run at `path`."""
    run = collect(path)
    checkpoints = sorted(p.name for p in (path / "checkpoints").glob("step-*"))
    state = str(run.status.get("state", "never started"))
    rows = {
        "state": f"{state} since {_time(run.status)} UTC",
        **({"last heard of": heard} if state == "running" and (heard := _heard(path)) else {}),
        "step": f"{run.steps} of {run.wanted}" if run.wanted else str(run.steps),
        "loss": number(loss) if (loss := run.last("train/loss")) is not None else "-",
        **{
            f"held-out {key}": number(value)
            for key, value in held_out(run).items()
            if key in _SHOWN and is_number(value)
        },
        "checkpoints": ", ".join(checkpoints) or "none",
    }
    lines = [f"{run.name}  {path}", *(f"  {name:<22}{text}" for name, text in rows.items())]
    lines += [f"  warning: {text}" for text in warnings(run)]
    lines += ["  last events (UTC)", *(f"    {_event(row)}" for row in run.journal[-_LAST_EVENTS:])]
    return "\n".join(lines)


def _heard(path: Path) -> str:
    """How long ago any rank said what it does; one that was killed says it no more, and STATUS stays."""
    said = [file.stat().st_mtime for file in (path / "heartbeats").glob("rank-*.json")]
    if not said:
        return ""
    seconds = max(time.time() - max(said), 0)
    return f"{seconds:.0f} s ago" if seconds < 120 else f"{seconds / 60:,.0f} min ago"


def _time(row: dict[str, Any]) -> str:
    return str(row.get("time", "-"))[:19].replace("T", " ")


def _event(row: dict[str, Any]) -> str:
    step = f" step {row['step']}" if row.get("step") is not None else ""
    return f"{_time(row)}  attempt {row.get('attempt')}{step}  {row.get('event')}"
