"""Which curves a report draws, what they are called, and where their teachers' lines are."""

from __future__ import annotations

from collections.abc import Sequence

from megadistill.report.chart import Line, Plot, chart
from megadistill.report.collect import RunFacts
from megadistill.report.tables import teachers

TITLES = {
    "train/loss": "training loss",
    "heldout/perplexity": "held-out perplexity",
    "heldout/agreement_top1": "held-out agreement with the teacher (top 1)",
    "train/learning_rate": "learning rate",
    "train/gradient_norm": "gradient norm",
    "train/tokens_per_second": "tokens per second",
    "train/data_wait": "share of the step spent waiting for data",
    "train/memory_gb": "memory of rank 0, its peak so far (GB)",
}
COLORS = 6
"""How many line colours the page defines; more runs than that share them."""
NEUTRAL = COLORS
"""The number of a colour that is no run's."""


_ROWS = "Training looks at `evaluate.rows` rows; the teacher's line is over all that were evaluated."


def curves(runs: Sequence[RunFacts]) -> list[Plot]:
    """Every plot by step that there is something for."""
    marks = sorted({step for run in runs for step in run.resumes})
    drawn = []
    for metric in _metrics(runs):
        lines = [Line(run.name, run.series(metric), run.color) for run in runs]
        if len({x for line in lines for x, _ in line.points}) < 2:  # a number, not a curve: tables have it
            continue
        title = TITLES.get(metric) or metric.removeprefix("train/").replace("/", " ").replace("_share ", " share of ")
        lines += _teachers(runs, metric, [x for line in lines for x, _ in line.points])
        if drawing := chart(title, lines, marks, log=metric == "heldout/perplexity"):
            legend = [(line, line.points[-1][1]) for line in lines if line.points]
            told = _ROWS if metric.startswith("heldout/") and any(line.dashed for line in lines) else ""
            drawn.append(Plot(title, drawing, legend, told))
    return drawn


def _metrics(runs: Sequence[RunFacts]) -> list[str]:
    labels = dict.fromkeys(label for run in runs for label in run.objectives)
    known = ["train/loss", *(f"train/objective/{label}" for label in labels), *list(TITLES)[1:]]
    keys = sorted({key for run in runs for row in run.metrics for key in row})
    return known + [key for key in keys if key not in known and key.count("/") == 2]


def _teachers(runs: Sequence[RunFacts], metric: str, steps: Sequence[float]) -> list[Line]:
    """The teachers' own values, dashed: as wide as the curves where there is one number, step by step where it is
    logged."""
    hard = [
        place
        for place, run in enumerate(runs)
        for one in run.config.get("objectives") or []
        if one.get("kind") == "hard_ce" and metric == f"train/objective/{one.get('name') or 'hard_ce'}"
    ]
    lines = [Line(f"{runs[n].name}: its teacher", runs[n].series("teacher/loss"), runs[n].color, True) for n in hard]
    if lines and (len(runs) == 1 or len(teachers(runs)) == 1):
        lines = [Line("teacher", lines[0].points, NEUTRAL, dashed=True)]
    if metric.startswith("heldout/") and steps:
        for label, place, shade in shaded(runs):
            value = runs[place].evaluation.get("heldout", {}).get(metric.replace("heldout/", "teacher_"))
            if value is not None:
                lines.append(Line(label, [(min(steps), value), (max(steps), value)], shade, dashed=True))
    return lines


def shaded(runs: Sequence[RunFacts]) -> list[tuple[str, int, int]]:
    """Label, run and colour of each known teacher: no run's colour where there is one only."""
    found = teachers(runs)
    return [(label, place, NEUTRAL if len(found) == 1 else runs[place].color) for label, place in found]
