"""How far a run is, in a few lines for a terminal."""

from __future__ import annotations

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
    rows = {
        "state": f"{run.status.get('state', 'never started')} since {_time(run.status)}",
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
    lines += ["  last events", *(f"    {_event(row)}" for row in run.journal[-_LAST_EVENTS:])]
    return "\n".join(lines)


def _time(row: dict[str, Any]) -> str:
    return str(row.get("time", "-"))[:19].replace("T", " ")


def _event(row: dict[str, Any]) -> str:
    step = f" step {row['step']}" if row.get("step") is not None else ""
    return f"{_time(row)}  attempt {row.get('attempt')}{step}  {row.get('event')}"
