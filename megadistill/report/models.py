"""What is known of models on tasks: one's own, from what `evaluate --tasks` has left, and those of the papers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megadistill.report.arms import arms
from megadistill.report.collect import RunFacts, is_number

GLUE = {
    "cola": "CoLA",
    "mnli": "MNLI",
    "mrpc": "MRPC",
    "qnli": "QNLI",
    "qqp": "QQP",
    "rte": "RTE",
    "sst2": "SST-2",
    "stsb": "STS-B",
    "wnli": "WNLI",
}
TASKS = {**GLUE, "imdb": "IMDb", "squad": "SQuAD", "race": "RACE"}
MACRO = {"macro": (), "macro_without_wnli": ("wnli",)}
"""Means over GLUE, and what they leave out."""

_PARTS = {
    "mnli": ("dev_matched/accuracy", "dev_mismatched/accuracy"),
    "squad": ("dev/exact_match", "dev/f1"),
}
"""Of the metrics of a task, those that are shown one beside the other."""


@dataclass(frozen=True)
class Score:
    """On one task, in per cent."""

    value: float
    """The one number that stands for it; of SQuAD F1, of two metrics or two dev sets else their mean."""
    parts: tuple[float, ...]
    """What is shown."""
    seeds: tuple[float, ...] = ()

    @property
    def std(self) -> float | None:
        """The sample's standard deviation; None for a single seed."""
        return statistics.stdev(self.seeds) if len(self.seeds) > 1 else None


@dataclass(frozen=True, eq=False)
class Model:
    """One line of a table."""

    name: str
    scores: dict[str, Score]
    """By task, or by name of a mean (`MACRO`)."""
    parameters: dict[str, float] = field(default_factory=dict)
    """By what they were counted for; counts of one kind can be compared."""
    seconds: float | None = None
    """Of one pass over STS-B's dev set at batch 1 on the CPU."""
    timing: str = ""
    """What the seconds are of; only equal ones can be compared."""
    faster: float | None = None
    """Than its teacher, as a paper says."""
    color: int | None = None

    def smaller_than(self, teacher: Model) -> float | None:
        """How many times."""
        both = [kind for kind in self.parameters if kind in teacher.parameters]
        return teacher.parameters[both[0]] / self.parameters[both[0]] if both else None

    def faster_than(self, teacher: Model) -> float | None:
        """How many times; None where it is not known, or where they were timed otherwise than each other."""
        if self.seconds and teacher.seconds and self.timing == teacher.timing:
            return teacher.seconds / self.seconds
        return self.faster

    def mean(self, tasks: Sequence[str]) -> float | None:
        """Over these tasks, if it was scored on all of them."""
        if not tasks or any(task not in self.scores for task in tasks):
            return None
        return statistics.fmean(self.scores[task].value for task in tasks)


@dataclass(frozen=True)
class Group:
    """Models of one source."""

    title: str
    note: str
    models: list[Model]
    teacher: Model | None = None


def own(facts: Sequence[RunFacts]) -> dict[Path, Model]:
    """By folder: the runs and folders of scores that were scored on tasks, or timed. Runs on a task that differ by
    their seed alone are one model."""
    found: dict[Path, Model] = {}
    for arm in arms([one for one in facts if _task(one)]):
        model = _own(arm.name, list(arm.runs.values()))
        found |= {run.path.resolve(): model for run in arm.runs.values()}
    for one in facts:
        found.setdefault(one.path.resolve(), _own(one.name, [one]))
    ordered = {path: found[path] for path in (one.path.resolve() for one in facts)}
    return {path: model for path, model in ordered.items() if model.scores or model.seconds}


def published() -> list[Group]:
    """In the order of `published.yaml`."""
    groups = []
    for group in yaml.safe_load((Path(__file__).parent / "published.yaml").read_text(encoding="utf-8")):
        models = {name: _published(name, tree) for name, tree in group["models"].items()}
        note = f"{group['source']}: {group['measured']}"
        groups.append(Group(group["name"], note, list(models.values()), models.get(group["teacher"])))
    return groups


def _task(facts: RunFacts) -> str | None:
    """What a run on a task was scored on, if it was."""
    task = facts.config.get("task") or {}
    name = task.get("name") if task.get("kind") == "glue" else task.get("kind")
    return name if name in TASKS and is_number(facts.evaluation.get("task", {}).get("score")) else None


def _own(name: str, runs: Sequence[RunFacts]) -> Model:
    """Of one run or folder; of several runs on one task, which are its seeds."""
    first = runs[0]
    tasks, speed = first.tasks, next((run.evaluation["speed"] for run in runs if "speed" in run.evaluation), {})
    learnt = {task: tasks[task] for task in TASKS if isinstance(tasks.get(task), dict)}
    if task := _task(first):
        learnt[task] = _together([run.evaluation["task"] for run in runs])
    scores = {task: _score(task, found) for task, found in learnt.items() if is_number(found.get("median"))}
    for mean, without in MACRO.items():
        if is_number(tasks.get(mean)) and set(tasks.get("missing_of_glue", GLUE)) <= set(without):
            scores[mean] = Score(100 * tasks[mean], (100 * tasks[mean],))
    counts = {"speed": speed.get("num_parameters")}
    counts |= {"task": next((found.get("num_parameters") for found in learnt.values()), None)}
    timing = f"{speed.get('num_rows')} rows, {speed.get('threads')} threads"
    parameters = {kind: float(count) for kind, count in counts.items() if is_number(count)}
    return Model(name, scores, parameters, speed.get("seconds_batch_1"), timing, color=first.color)


def _together(seeds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Scores of several seeds, as `evaluate --tasks` writes them."""
    medians = {key: statistics.median(one[key] for one in seeds) for key, value in seeds[0].items() if is_number(value)}
    scores = [one["score"] for one in seeds]
    return {**medians, "median": statistics.median(scores), "scores": scores}


def _score(task: str, found: dict[str, Any]) -> Score:
    scale = 1 if task == "squad" else 100  # as SQuAD's script gives them
    parts = [found[part] for part in _PARTS.get(task, ()) if is_number(found.get(part))] or [found["median"]]
    seeds = [seed for seed in found.get("scores", []) if is_number(seed)]
    return Score(scale * found["median"], tuple(scale * x for x in parts), tuple(scale * x for x in seeds))


def _published(name: str, tree: dict[str, Any]) -> Model:
    lists = {task: value if isinstance(value, list) else [value] for task, value in tree.items()}
    scores = {
        task: Score(values[-1] if task == "squad" else statistics.fmean(values), tuple(values))
        for task, values in lists.items()
        if task in (*TASKS, *MACRO)
    }
    parameters = {"published": 1e6 * tree["parameters"]} if "parameters" in tree else {}
    return Model(name, scores, parameters, tree.get("seconds"), "published", tree.get("faster"))
