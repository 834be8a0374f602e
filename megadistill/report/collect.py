"""What a run directory, or a folder of scores, says: read once and put in order; whatever is missing stays out."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from megadistill.core.errors import UserError
from megadistill.core.files import read_lines

Row = dict[str, Any]
Points = list[tuple[int, float]]

_TROUBLE = {
    "nonfinite": "skipped update(s): the loss or its gradient was not finite",
    "spike": "step(s) with a loss far above those before",
    "rollback": "return(s) to an earlier checkpoint, the data of the undone steps being left out",
    "hang": "attempt(s) that hung",
    "straggler": "slow rank(s)",
    "uncopied": "checkpoint(s) not copied to remote storage",
    "fallback": "fallback(s) to something else than was asked for",
}
"""Journal events that a reader must not miss."""

SUMMARY = "summary"
"""Of fine-tuned models: the file that `evaluate --tasks` writes."""
SCORES = ("speed", "wikitext", "pseudo_perplexity")
"""Files of other scores beside it, where the model is no run."""


@dataclass(frozen=True)
class RunFacts:
    """One run, as its directory tells it."""

    path: Path
    name: str
    identity: Row
    status: Row
    config: Row
    """Resolved: every field."""
    given: Row
    """What of it was given, in files and on the command line; empty where that was not kept."""
    command: str
    environment: Row
    metrics: list[Row]
    journal: list[Row]
    evaluation: dict[str, Row]
    """By what was evaluated: its numbers."""
    tasks: Row
    """By task that the model was fine-tuned on: the spread of its score over seeds, and `scores`; and macro scores."""
    corpora: list[Row]
    """What `prepare` tells of each corpus, where its shards are still there."""
    color: int = 0
    """The number of the page's colour that its lines have."""

    @property
    def is_run(self) -> bool:
        """Else it is a folder of scores of a model that no run made."""
        return bool(self.identity or self.config)

    def series(self, metric: str) -> Points:
        """(step, value) in order of steps; a step repeated after a resume counts as it was last written."""
        values = {row["step"]: row[metric] for row in self.metrics if metric in row and "step" in row}
        numbers = {step: value for step, value in values.items() if is_number(value)}
        return sorted(numbers.items())

    def last(self, metric: str) -> float | None:
        points = self.series(metric)
        return points[-1][1] if points else None

    @property
    def objectives(self) -> list[str]:
        """Labels of the objectives that were logged, in the order of the config."""
        prefix = "train/objective/"
        return list(
            dict.fromkeys(key.removeprefix(prefix) for row in self.metrics for key in row if key.startswith(prefix))
        )

    @property
    def course(self) -> list[Row]:
        """The journal without copies that failed, which may be told of even after the end."""
        return [row for row in self.journal if row.get("event") != "uncopied"]

    @property
    def resumes(self) -> list[int]:
        """The steps that attempts continued from."""
        return sorted({row["step"] for row in self.journal if row.get("event") == "resume" and row.get("step")})

    @property
    def wanted(self) -> int:
        """How many steps the run is to take; 0: not known."""
        train = self.config.get("train") or {}
        return int(train.get("steps", 0)) + sum(train.get("more_steps") or [])

    @property
    def steps(self) -> int:
        return max((row["step"] for row in self.metrics if isinstance(row.get("step"), int)), default=0)


def collect(path: Path) -> RunFacts:
    """Read one run directory, or what was kept of one; or a folder of scores that `evaluate` has written.

    Raises:
        UserError: it is none, or a file in it cannot be read.
    """
    identity = _json(path / "run.json")
    config = _yaml(path / "config.resolved.yaml")
    scores = {} if identity or config else _scores(path)
    if not (identity or config or scores):
        raise UserError(
            f"{path} is no run directory and no folder of scores",
            "it holds neither run.json nor config.resolved.yaml, nor what `evaluate --tasks` leaves",
            "name a folder that `megadistill train` or `megadistill evaluate` has written",
        )
    evaluation = {file.stem: _json(file) for file in sorted((path / "evaluation").glob("*.json"))}
    return RunFacts(
        path=path,
        name=identity.get("name") or config.get("name") or path.resolve().name.removesuffix("-tasks"),
        identity=identity,
        status=_json(path / "STATUS"),
        config=config,
        given=_yaml(path / "config.yaml"),
        command=_text(path / "command.txt").strip(),
        environment=_json(path / "environment.json"),
        metrics=read_lines(path / "metrics.jsonl"),
        journal=read_lines(path / "journal.jsonl"),
        evaluation=evaluation | {name: found for name, found in scores.items() if name != SUMMARY},
        tasks=scores.get(SUMMARY) or _json(path / "evaluation" / "tasks" / f"{SUMMARY}.json"),
        corpora=_corpora(config.get("data") or {}),
    )


def warnings(run: RunFacts) -> list[str]:
    """What a reader should know before trusting the numbers."""
    told = []
    events = Counter(row.get("event") for row in run.journal)
    for event, meaning in _TROUBLE.items():
        if events[event]:
            told.append(f"{events[event]} {meaning}")
    for row in run.journal:
        if reasons := row.get("not_bitwise"):
            text = "; ".join(reasons) if isinstance(reasons, list) else str(reasons)
            told.append(f"attempt {row.get('attempt')} is not bitwise a continuation: {text}")
    told += _interruptions(run.course)
    unlogged = sum(not is_number(row["train/loss"]) for row in run.metrics if "train/loss" in row)
    if unlogged:
        told.append(f"{unlogged} logged step(s) with a loss that is not finite; they are left out of the curves")
    for name, scores in run.evaluation.items():
        if scores.get("step", run.steps) < run.steps:
            told.append(f"{name} was scored at step {scores['step']}, and the run is at {run.steps}: evaluate it again")
    if not run.metrics:
        told.append("no metrics were written yet")
    if run.metrics and run.steps < run.wanted and run.status.get("state") != "running":
        told.append(f"stands at step {run.steps} of {run.wanted}")
    return list(dict.fromkeys(told))


def _interruptions(journal: list[Row]) -> list[str]:
    """Attempts that ended without a word, and resumes that had to go further back than the last save."""
    told, saved, silent = [], 0, 0
    for before, row in pairwise([{}, *journal]):
        if row.get("event") == "resume":
            silent += before.get("event") not in ("signal", "end", "requeue", "rollback")
            if row["step"] < saved:
                told.append(f"attempt {row.get('attempt')} resumed from step {row['step']}, though {saved} was saved")
        if row.get("event") == "save":
            saved = max(saved, row["step"])
        elif row.get("event") == "rollback":  # what was saved later is undone
            saved = 0
    return [*told, *([f"{silent} attempt(s) ended without saying why: killed, or crashed"] if silent else [])]


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it can be shown and drawn as one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _scores(folder: Path) -> dict[str, Row]:
    """What `evaluate` has left in a folder of its own, by file; nothing where this is none."""
    found = {name: _json(folder / f"{name}.json") for name in (SUMMARY, *SCORES)}
    learnt = any(isinstance(one, dict) and is_number(one.get("median")) for one in found[SUMMARY].values())
    return {name: one for name, one in found.items() if one and (learnt or name != SUMMARY)}


def _corpora(data: Row) -> list[Row]:
    folder = Path(data.get("dir") or "")
    found = (_json(folder / str(corpus.get("name")) / "stats.json") for corpus in data.get("corpora") or [])
    return [stats for stats in found if "train" in stats]


def _json(path: Path) -> Row:
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"cannot read {path}", str(error), "it is not as megadistill wrote it") from None
    return value if isinstance(value, dict) else {}


def _yaml(path: Path) -> Row:
    try:
        value = yaml.safe_load(_text(path))
    except yaml.YAMLError as error:
        raise UserError(f"cannot read {path}", str(error), "it is not as megadistill wrote it") from None
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
