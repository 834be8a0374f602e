"""What is each change worth? Runs that differ by their seed alone are one arm; arms are compared with the first."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from megadistill.report.collect import RunFacts, is_number
from megadistill.report.differences import ABSENT, changes
from megadistill.report.tables import Table, seen_at

Row = dict[str, Any]

_APART = ("seed", "name", "directory")
"""What runs of one arm may differ in."""
_SEED = re.compile(r"[-_]?seed[-_]?\d+")
"""In names and paths, as in runs/all-seed1."""
_ROWS = "rows"
"""Of scores that `evaluate` gave: those of each row."""
_MOST = 6
"""Changes named in a cell."""


@dataclass
class Arm:
    """Runs of one recipe."""

    name: str
    runs: dict[Any, RunFacts] = field(default_factory=dict)
    """By seed."""
    scores: dict[Any, Row] = field(default_factory=dict)
    """Of each on held-out text; with the `step` that they were made after."""

    def all(self, key: str) -> list[float]:
        return [found[key] for found in self.scores.values() if is_number(found.get(key))]


def recipe(run: RunFacts) -> str:
    """Equal for runs of one arm."""
    config = {key: value for key, value in run.config.items() if key not in _APART}
    return _SEED.sub("", json.dumps(config, sort_keys=True))


def arms(runs: Sequence[RunFacts]) -> list[Arm]:
    """In the order of their first runs; a seed that comes twice counts once, as it came last."""
    scores = _on_the_same_text(runs)
    found: dict[str, Arm] = {}
    for run, its in zip(runs, scores, strict=True):
        arm = found.setdefault(recipe(run), Arm(_SEED.sub("", run.name)))
        seed = run.config.get("seed", 0)
        arm.runs[seed], arm.scores[seed] = run, its
    return list(found.values())


def comparison(runs: Sequence[RunFacts]) -> Table | None:
    """One row an arm: its mean scores, and by how much its loss is above the first arm's; None for a single arm, and
    where not all were scored on the same text. Of runs on their way, as they were after the last step that there are
    scores of from all of them."""
    found = arms(runs)
    if len(found) < 2 or not all(arm.all("loss") for arm in found):
        return None
    base = found[0]
    columns: dict[str, list[str]] = {
        "held-out loss": [_mean(arm.all("loss")) for arm in found],
        f"above {base.name}": ["", *(_gap(base, arm) for arm in found[1:])],
        "agreement": [_mean(arm.all("agreement_top1"), share=True) for arm in found],
        "KL": [_mean(arm.all("kl")) for arm in found],
        "seeds": [str(len(arm.runs)) for arm in found],
        f"differs from {base.name} in": ["", *(_told(base, arm) for arm in found[1:])],
    }
    columns = {name: cells for name, cells in columns.items() if set(cells) != {ABSENT}}
    rows = [(arm.name, list(cells)) for arm, cells in zip(found, zip(*columns.values(), strict=True), strict=True)]
    note = _when(found) + (
        "± after a loss is the standard deviation over seeds. Differences are taken seed by seed, ± their standard "
        "deviation; of a single seed row by row of the held-out text, ± their standard error."
    )
    return Table("Comparison", [(name, None) for name in columns], rows, note, texts=1)


def _on_the_same_text(runs: Sequence[RunFacts]) -> list[Row]:
    """Every run's scores: all of `evaluate`, or all as training saw them, after the same step or at every run's end;
    nothing where there is no such step, or where that was other text."""
    evaluated, ends = [run.evaluation.get("heldout") or {} for run in runs], [run.wanted for run in runs]
    steps = [found.get("step") for found in evaluated]
    alike = len({found.get("num_targets") for found in evaluated}) == 1
    if all(evaluated) and alike and (len(set(steps)) == 1 or steps == ends):
        rows = [run.evaluation.get("heldout_rows", {}) for run in runs]
        return [found | {_ROWS: its} for found, its in zip(evaluated, rows, strict=True)]
    read = [[run.config.get("evaluate"), run.config.get("data")] for run in runs]
    if any(text != read[0] for text in read):
        return [{} for _ in runs]
    looks = [{step for step, _ in run.series("heldout/loss")} for run in runs]
    begun = [seen for seen in looks if seen]
    if not all(end in seen for end, seen in zip(ends, looks, strict=True) if seen):
        ends = [max(set.intersection(*begun), default=0)] * len(runs)
    return [seen_at(run, end) for run, end in zip(runs, ends, strict=True)]


def _when(found: Sequence[Arm]) -> str:
    steps = {its["step"] for arm in found for its in arm.scores.values() if is_number(its.get("step"))}
    told = [f"{step:,}" for step in sorted(steps)]
    if len(told) > 1:
        return f"Each run after its last step: {', '.join(told[:-1])} or {told[-1]}. "
    return f"After step {told[0]}. " if told else ""


def _gap(base: Arm, arm: Arm) -> str:
    ours, theirs = ([seed for seed, its in one.scores.items() if is_number(its.get("loss"))] for one in (base, arm))
    pairs = [(seed, seed) for seed in theirs if seed in ours] or [(ours[0], theirs[0])]
    gaps = [arm.scores[other]["loss"] - base.scores[seed]["loss"] for seed, other in pairs]
    rows = [one.scores[seed].get(_ROWS, {}) for one, seed in zip((base, arm), pairs[0], strict=True)]
    by_row = paired(*rows) if len(gaps) == 1 else None
    error = statistics.stdev(gaps) if len(gaps) > 1 else by_row and by_row[1]
    return f"{statistics.fmean(gaps):+.4f}".replace("-", "−") + (f" ± {error:.4f}" if error is not None else "")


def paired(ours: Row, theirs: Row) -> tuple[float, float] | None:
    """By how much the second model's held-out loss is above the first's, and the standard error of that ratio of sums
    over rows (Cochran 1977, 2.11), in nats a target; None where they were not scored on the same rows.

    Args:
        ours: `targets` and `nll` of each row, as `evaluate` writes them.
        theirs: the second model's.
    """
    targets = ours.get("targets")
    if not targets or targets != theirs.get("targets") or len(targets) < 2:
        return None
    gaps = [y - x for x, y in zip(ours["nll"], theirs["nll"], strict=True)]
    mean = sum(gaps) / sum(targets)
    squares = sum((gap - mean * count) ** 2 for gap, count in zip(gaps, targets, strict=True))
    return mean, math.sqrt(squares * len(targets) / (len(targets) - 1)) / sum(targets)


def _told(base: Arm, arm: Arm) -> str:
    first, other = (next(iter(one.runs.values())).config for one in (base, arm))
    keys = [change.key for change in changes(first, other) if change.key not in _APART]
    return ", ".join(keys[:_MOST]) + (f" and {len(keys) - _MOST} more" if len(keys) > _MOST else "")


def _mean(values: Sequence[float], share: bool = False) -> str:
    if not values:
        return ABSENT
    mean, error = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    return f"{mean:.2%}" if share else f"{mean:.4f}" + (f" ± {error:.4f}" if error is not None else "")
