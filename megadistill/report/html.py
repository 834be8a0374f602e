"""One self-contained HTML page about one or more runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from megadistill.core.files import atomic_write
from megadistill.report.chart import Line, chart, number
from megadistill.report.collect import RunFacts, collect, scores, warnings
from megadistill.report.timeline import timeline

COLORS = 6
"""How many line colours the page defines; more runs than that share them."""

_TITLES = {
    "train/loss": "training loss",
    "heldout/perplexity": "held-out perplexity",
    "heldout/agreement_top1": "held-out agreement with the teacher (top 1)",
    "train/learning_rate": "learning rate",
    "train/gradient_norm": "gradient norm",
    "train/tokens_per_second": "tokens per second",
    "train/data_wait": "share of the step spent waiting for data",
}


def report(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page; returns where: RUN/report.html, for several runs beside the first."""
    runs = [collect(path) for path in paths]
    if output is None:
        output = paths[0] / "report.html" if len(runs) == 1 else paths[0].resolve().parent / "report.html"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    page = environment.get_template("template.html.j2").render(
        title=" · ".join(run.name for run in runs),
        runs=[_run(run, index) for index, run in enumerate(runs)],
        table=_table(runs),
        charts=_charts(runs),
    )
    with atomic_write(output) as handle:
        handle.write(page)
    return output


def _run(run: RunFacts, index: int) -> dict[str, Any]:
    return {
        "name": run.name,
        "path": str(run.path),
        "color": index % COLORS,
        "state": run.status.get("state", "unknown"),
        "facts": _facts(run),
        "warnings": warnings(run),
        "corpora": [_corpus(stats) for stats in run.corpora],
        "timeline": timeline(run.journal, run.metrics),
        "events": [_event(row) for row in run.journal],
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    }


def _facts(run: RunFacts) -> dict[str, str]:
    """What a reader wants to know first, of what is there."""
    config, numerics = run.config, run.environment.get("numerics", {})
    teacher, student = config.get("teacher") or {}, config.get("student") or {}
    objectives = config.get("objectives") or []
    code = run.identity.get("code") or {}
    found = {
        "student": _one_line(student),
        "teacher": _one_line(teacher) if teacher else "none" if config else "",
        "objectives": ", ".join(f"{o.get('name') or o.get('kind')} × {number(o.get('weight', 1))}" for o in objectives),
        "corpora": ", ".join(str(c.get("name") or c.get("kind")) for c in config.get("data", {}).get("corpora", [])),
        "batch": _batch(config["batch"]) if config.get("batch") else "",
        "machine": ", ".join(run.environment.get("gpus") or [str(numerics.get("cpu", ""))]),
        "processes": str(numerics.get("world size", "")),
        "torch, deepspeed": " · ".join(str(numerics[n]) for n in ("torch", "deepspeed") if numerics.get(n)),
        "created": str(run.identity.get("created", ""))[:19].replace("T", " "),
        "code": f"{code.get('version', '')} {(code.get('git') or '')[:10]}".strip(),
        "attempts": str(len({row.get("attempt") for row in run.journal} - {None}) or ""),
    }
    return {name: text for name, text in found.items() if text}


def _batch(batch: dict[str, Any]) -> str:
    later = (f", {change['global_size']} from step {change['from_step']}" for change in batch.get("schedule") or [])
    return f"{batch['global_size']} rows{''.join(later)}"


def _corpus(stats: dict[str, Any]) -> dict[str, Any]:
    """What a reader wants to know of a prepared corpus; `lengths` has the height of each bar in percent."""
    train, lengths = stats["train"], stats.get("document_lengths") or {}
    most = max(lengths.values(), default=1)
    return {
        "cells": {
            "corpus": stats.get("name", ""),
            "documents": f"{stats.get('documents', 0):,}",
            "duplicates": f"{stats.get('duplicates', 0):,}",
            "near duplicates": f"{stats.get('near_duplicates', 0):,}",
            "contaminated": f"{stats.get('contaminated', 0):,}",
            "training tokens": f"{train['tokens']:,}",
            "training rows": f"{train['rows']:,}",
            "padding": f"{train['padding_share']:.1%}",
            "unknown tokens": f"{stats.get('unknown_share', 0):.2%}",
        },
        "lengths": [(name, f"{count:,}", round(100 * count / most)) for name, count in lengths.items()],
    }


def _one_line(section: dict[str, Any]) -> str:
    """The kind, and the few plain values that say which one."""
    plain = [f"{key} {value}" for key, value in section.items() if key != "kind" and isinstance(value, str | int)]
    return ", ".join([str(section.get("kind", "")), *plain[:3]])


def _event(row: dict[str, Any]) -> dict[str, Any]:
    known = ("time", "event", "attempt", "step")
    return {
        "time": str(row.get("time", ""))[:19].replace("T", " "),
        "event": row.get("event", "?"),
        "attempt": row.get("attempt"),
        "step": row.get("step"),
        "facts": {key: _short(value) for key, value in row.items() if key not in known and value not in (None, [], {})},
    }


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 300 else text[:297] + "..."


def _table(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """(name, one cell a run) of every number that at least one run has."""
    columns = [scores(run) for run in runs]
    names = dict.fromkeys(name for column in columns for name in column)
    return [(name, [_cell(name, column.get(name)) for column in columns]) for name in names]


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if "agreement" in name or "accuracy" in name:
        return f"{100 * value:.2f} %"
    return f"{value:,.0f}" if float(value).is_integer() else number(value)


def _charts(runs: Sequence[RunFacts]) -> list[dict[str, Any]]:
    labels = list(dict.fromkeys(label for run in runs for label in run.objectives))
    looked_at = sorted({key for run in runs for row in run.metrics for key in row if key.count("/") == 2})
    metrics = ["train/loss", *[f"train/objective/{label}" for label in labels], *list(_TITLES)[1:]]
    metrics += [key for key in looked_at if key not in metrics]
    hard = {
        f"train/objective/{objective.get('name') or 'hard_ce'}"
        for run in runs
        for objective in run.config.get("objectives", [])
        if objective.get("kind") == "hard_ce"
    }
    marks = sorted({step for run in runs for step in run.resumes})
    drawn = []
    for metric in metrics:
        lines = [Line(run.name, run.series(metric), index % COLORS) for index, run in enumerate(runs)]
        if metric == "heldout/perplexity":
            lines += _teachers(runs, lines)
        if metric in hard:
            lines += [
                Line(f"{run.name}: its teacher", run.series("teacher/loss"), index % COLORS, dashed=True)
                for index, run in enumerate(runs)
            ]
        title = _TITLES.get(metric) or metric.removeprefix("train/").replace("/", " ").replace("_share ", " share of ")
        if svg := chart(title, lines, marks, log=metric == "heldout/perplexity"):
            drawn.append({"title": title, "svg": svg, "lines": [line for line in lines if line.points]})
    return drawn


def _teachers(runs: Sequence[RunFacts], lines: Sequence[Line]) -> list[Line]:
    """The teacher's perplexity, dashed and as wide as its student's curve, which says little alone."""
    teachers = []
    for run, line in zip(runs, lines, strict=True):
        points: list[tuple[int, float]] = []
        if line.points and "teacher's held-out perplexity" in scores(run):
            value = scores(run)["teacher's held-out perplexity"]
            points = [(int(line.points[0][0]), value), (int(line.points[-1][0]), value)]
        teachers.append(Line(f"{run.name}: its teacher", points, line.color, dashed=True))
    return teachers
