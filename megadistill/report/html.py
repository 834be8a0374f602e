"""One self-contained HTML page about one or more runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from megadistill.core.errors import UserError
from megadistill.core.files import atomic_write
from megadistill.report import tables
from megadistill.report.arms import comparison, recipe
from megadistill.report.collect import RunFacts, collect, is_number, warnings
from megadistill.report.curves import COLORS, curves
from megadistill.report.differences import among, origin
from megadistill.report.models import own
from megadistill.report.numbers import number
from megadistill.report.paper import paper_plots, paper_table
from megadistill.report.profile import profiles
from megadistill.report.timeline import timeline


def report(paths: Sequence[Path], output: Path | None = None, teacher: Path | None = None) -> Path:
    """Write the page; returns where: RUN/report.html, for several runs beside the first.

    Args:
        paths: run directories, and folders of scores that `evaluate` has written.
        teacher: one of them, or one more, whose scores on tasks the others' are compared with.
    """
    named = list(paths) + ([teacher] if teacher and teacher.resolve() not in [p.resolve() for p in paths] else [])
    facts = _colored(sorted(map(collect, named), key=lambda one: not one.is_run))
    runs = [one for one in facts if one.is_run]
    by_folder = own(facts)
    models = list(dict.fromkeys(by_folder.values()))
    its = None if teacher is None else by_folder.get(teacher.resolve())
    if teacher is not None and its is None:
        raise UserError(
            f"--teacher {teacher} was not scored on tasks, nor timed",
            "",
            f"megadistill evaluate {teacher} --tasks glue,squad,imdb,speed --data FOLDER",
        )
    if output is None:
        output = paths[0] / "report.html" if len(facts) == 1 else paths[0].resolve().parent / "report.html"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "breakable": _breakable}
    page = environment.get_template("template.html.j2").render(
        title=" · ".join(one.name for one in facts),
        facts=facts,
        runs=[_run(run) for run in runs],
        tables=_tables(facts, runs),
        paper=paper_table(models, its),
        bars=list(paper_plots(models, its)),
        profiles=list(profiles(runs)),
        curves=curves(runs),
    )
    with atomic_write(output) as handle:
        handle.write(page)
    return output


def _breakable(name: str) -> Markup:
    """A field's name, which may be broken behind its dots and underscores."""
    return Markup(re.sub(r"([._])", r"\1<wbr>", str(escape(name))))


def _colored(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """Runs of one recipe have one colour, if there are several recipes or other models."""
    of = [recipe(run) if run.is_run else str(run.path) for run in runs]
    known = list(dict.fromkeys(of))
    places = range(len(runs)) if len(known) == 1 else map(known.index, of)
    return [replace(run, color=place % COLORS) for run, place in zip(runs, places, strict=True)]


def _tables(facts: Sequence[RunFacts], runs: Sequence[RunFacts]) -> list[tables.Table]:
    found = [comparison(runs), *tables.evaluations(facts), tables.training(runs)]
    if len(runs) > 1:
        found.append(tables.Table("Where the configs differ", tables.columns(runs), among(runs), texts=len(runs)))
    return [table for table in found if table is not None and table.rows]


def _run(run: RunFacts) -> dict[str, Any]:
    return {
        "name": run.name,
        "color": run.color,
        "state": _state(run),
        "steps": _steps(run),
        "facts": _facts(run),
        "warnings": warnings(run),
        "corpora": [_corpus(stats) for stats in run.corpora],
        "timeline": timeline(run.journal, run.metrics),
        "events": [_event(row) for row in run.journal],
        "origin": origin(run),
        "config": yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True),
    }


def _facts(run: RunFacts) -> dict[str, str]:
    """What a reader wants to know first, of what is there."""
    config, numerics = run.config, run.environment.get("numerics", {})
    teacher, student = config.get("teacher") or {}, config.get("student") or {}
    objectives, data = config.get("objectives") or [], config.get("data") or {}
    code = run.identity.get("code") or {}
    found = {
        "folder": str(run.path),
        "student": _one_line(run.given.get("student") or student),
        "teacher": _one_line(run.given.get("teacher") or teacher) if teacher else "none" if config else "",
        "objectives": ", ".join(f"{o.get('name') or o.get('kind')} × {number(o.get('weight', 1))}" for o in objectives),
        "corpora": ", ".join(str(c.get("name") or c.get("kind")) for c in data.get("corpora", [])),
        "task": _one_line(config["task"]) if config.get("task") else "",
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
    """The kind, and whatever else says which one."""
    rest = {key: value for key, value in section.items() if key != "kind" and value not in (None, [], {})}
    text = yaml.safe_dump(rest, default_flow_style=True, width=10**6, sort_keys=False).strip()[1:-1]
    return _short(", ".join(filter(None, [str(section.get("kind", "")), text])))


def _event(row: dict[str, Any]) -> dict[str, Any]:
    known = ("time", "event", "attempt", "step")
    return {
        "time": str(row.get("time", ""))[:19].replace("T", " "),
        "event": row.get("event", "?"),
        "attempt": row.get("attempt"),
        "step": row.get("step"),
        "facts": {key: _short(value) for key, value in row.items() if key not in known and value not in (None, [], {})},
    }


def _short(value: Any, most: int = 300) -> str:
    if isinstance(value, dict):
        text = ", ".join(f"{key} {_short(one)}" for key, one in value.items())
    elif isinstance(value, list):
        text = ", ".join(map(_short, value))
    elif is_number(value):
        text = number(value)
    else:
        text = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1…", str(value))  # a sha256
    return text if len(text) <= most else text[: most - 1] + "…"


def _state(run: RunFacts) -> str:
    ended = bool(run.course) and run.course[-1].get("event") == "end"
    return str(run.status.get("state") or ("done" if ended else "unknown"))


def _steps(run: RunFacts) -> str:
    return f"step {run.steps:,}" + (f" of {run.wanted:,}" if run.wanted else "")
