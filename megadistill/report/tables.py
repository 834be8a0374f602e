"""Which numbers stand in the report's tables, what they are called, and how they are written."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megadistill.report.collect import RunFacts, is_number
from megadistill.report.numbers import number

Row = dict[str, Any]

NAMES = {
    "num_parameters": "parameters",
    "perplexity": "perplexity",
    "word_perplexity": "perplexity per word",
    "loss": "loss (nats)",
    "accuracy": "accuracy (top 1)",
    "agreement_top1": "agreement with the teacher (top 1)",
    "kl": "KL(teacher || student) (nats)",
    "calibration_error": "expected calibration error",
    "score": "score",
    "num_targets": "targets",
}
"""Of scores; in this order, whatever else there is behind them."""
TITLES = {
    "heldout": "Held-out text",
    "wikitext": "WikiText",
    "pseudo_perplexity": "Pseudo-perplexity",
    "task": "Task",
    "speed": "Size and speed",
}
_TEACHER = "teacher_"
_ON_THE_WAY = ("perplexity", "loss", "accuracy", "agreement_top1")
"""What training itself scores."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns; the first cell of a row names it."""

    title: str
    columns: Sequence[tuple[str, int | None]]
    """What stands above each cell behind the first, and the number of its run's colour, if it is a run's."""
    rows: list[tuple[str, list[str]]]
    note: str = ""
    texts: int = 0
    """So many of the last columns hold text, not numbers."""

    @property
    def wide(self) -> bool:
        """Whether it needs the page's whole width."""
        return self.texts > 0 or len(self.columns) > 3


def held_out(run: RunFacts) -> Row:
    """Scores of the newest evaluation; of the last look that training took, where there is none, or none so new."""
    found, looks = run.evaluation.get("heldout") or {}, run.series("heldout/loss")
    newer = bool(found and looks) and looks[-1][0] > found.get("step", looks[-1][0])
    return seen_last(run) if newer or not found else found


def seen_last(run: RunFacts) -> Row:
    """Scores of the last look that training took at held-out text."""
    seen = {key: run.last(f"heldout/{key}") for key in _ON_THE_WAY}
    return {key: value for key, value in seen.items() if value is not None}


def seen_at(run: RunFacts, step: int) -> Row:
    """Scores of the look that training took after `step`, and which step that is; empty where it took none."""
    seen = {key: dict(run.series(f"heldout/{key}")).get(step) for key in _ON_THE_WAY}
    found = {key: value for key, value in seen.items() if value is not None}
    return found and found | {"step": step}


def teachers(runs: Sequence[RunFacts]) -> list[tuple[str, int]]:
    """The teachers whose scores are known: what each is called, and the number of a run that has it. Those that scored
    alike, on held-out text or else on another, are one."""
    first: dict[float, int] = {}
    for place, run in enumerate(runs):
        texts = [run.evaluation.get("heldout", {}), *run.evaluation.values()]
        losses = [found["teacher_loss"] for found in texts if is_number(found.get("teacher_loss"))]
        if losses:
            first.setdefault(round(losses[0], 4), place)
    if len(first) == 1:
        return [("teacher", place) for place in first.values()]
    return [(f"{runs[place].name}: its teacher", place) for place in first.values()]


def evaluations(runs: Sequence[RunFacts]) -> list[Table]:
    """One table for everything that was evaluated: a column for each run that has it, then for each teacher."""
    names = dict.fromkeys(["heldout", *(name for run in runs for name in run.evaluation if not name.endswith("_rows"))])
    tables = []
    for name in names:
        found = [held_out(run) if name == "heldout" else run.evaluation.get(name, {}) for run in runs]
        there = [place for place, one in enumerate(found) if one]
        its = [(label, _of_teacher(found[place])) for label, place in teachers(runs) if _of_teacher(found[place])]
        above = [*((runs[place].name, place) for place in there), *((label, None) for label, _ in its)]
        own = [{k: v for k, v in found[place].items() if not k.startswith(_TEACHER)} for place in there]
        rows = _rows([*own, *(scores for _, scores in its)])
        if rows:
            tables.append(Table(TITLES.get(name, name), above, rows, _when(name, [runs[place] for place in there])))
    return tables


def training(runs: Sequence[RunFacts]) -> Table:
    """How far each run is, and how fast it was."""
    shown: dict[str, list[float | None]] = {
        "steps": [run.steps or None for run in runs],
        "training loss": [run.last("train/loss") for run in runs],
        "tokens per second (median)": [_median(run, "train/tokens_per_second") for run in runs],
        "waiting for data (median share)": [_median(run, "train/data_wait") for run in runs],
    }
    rows = [(name, [written(name, value) for value in values]) for name, values in shown.items() if any(values)]
    return Table("Training", columns(runs), rows)


def written(name: str, value: Any) -> str:
    """A cell."""
    if not is_number(value):
        return "–"
    if any(word in name for word in ("agreement", "accuracy", "share")):
        return f"{100 * value:.2f}%"
    if "bytes" in name:
        return f"{value / 1e6:,.1f} MB"
    return f"{value:,.0f}" if float(value).is_integer() else number(value)


def _rows(columns: Sequence[Row]) -> list[tuple[str, list[str]]]:
    there = {key for one in columns for key, value in one.items() if is_number(value) and key != "step"}
    order = [key for key in NAMES if key in there]
    order += [key for one in columns for key in one if key in there and key not in NAMES]
    return [
        (NAMES.get(key, key.replace("_", " ")), [written(key, one.get(key)) for one in columns])
        for key in dict.fromkeys(order)
    ]


def columns(runs: Sequence[RunFacts]) -> list[tuple[str, int | None]]:
    """One of each run."""
    return [(run.name, place) for place, run in enumerate(runs)]


def _of_teacher(found: Row) -> Row:
    return {key.removeprefix(_TEACHER): value for key, value in found.items() if key.startswith(_TEACHER)}


def _when(name: str, runs: Sequence[RunFacts]) -> str:
    steps = [run.evaluation.get(name, {}).get("step") for run in runs]
    if len(set(steps)) == 1 and is_number(steps[0]):
        return f"After step {steps[0]:,}."
    told = [f"{run.name} at step {step:,}" for run, step in zip(runs, steps, strict=True) if is_number(step)]
    if name == "heldout" and len(told) < len(runs):
        told.append("others as training saw them last" if told else "as training saw it last")
    return "; ".join(told)


def _median(run: RunFacts, metric: str) -> float | None:
    values = [value for _, value in run.series(metric)]
    return statistics.median(values) if values else None
