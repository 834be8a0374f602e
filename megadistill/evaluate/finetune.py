"""What a pretrained model is worth on tasks: fine-tuned (or distilled) on each with several seeds, and scored.

Every seed of every task is an ordinary run by the ordinary loop, in a process of its own, in
`<output>/<task>-seed-<n>`; the same command goes on with what is missing.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megadistill.core import log
from megadistill.core.errors import Exit, UserError
from megadistill.core.files import atomic_write, write_json
from megadistill.core.schema import Tree, override, read_yaml
from megadistill.evaluate.jobs import Share, side_by_side
from megadistill.evaluate.scores import evaluate
from megadistill.run.config import check
from megadistill.run.directory import RunDirectory
from megadistill.run.presets import folder as presets
from megadistill.tasks.glue import SETS
from megadistill.tasks.metrics import macro, spread

NAMES = (*SETS, "squad", "imdb", "race")
"""Tasks that a model can be fine-tuned on; `glue` stands for all of GLUE's."""


@dataclass(frozen=True)
class Plan:
    """How models are fine-tuned."""

    data: Path
    """Holds glue/, squad*/, imdb/ and race/."""
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: float = 3.0
    recipe: Path | None = None
    """A config of a run with a task, teacher and all; task, student weights, seed and steps are filled in."""
    assignments: tuple[str, ...] = ()
    """`key=value` on top of it."""
    jobs: int = 1
    """Runs at a time, see `side_by_side`."""


def chosen(names: Sequence[str], data: Path) -> list[str]:
    """The tasks that names stand for, in order; of `glue` those that are in `data`.

    Raises:
        UserError: an unknown name, or no task of GLUE there.
    """
    unknown = [name for name in names if name not in (*NAMES, "glue")]
    if unknown:
        raise UserError(f"no evaluation task {', '.join(unknown)}", f"there are: glue, {', '.join(NAMES)}")
    there = [name for name, one in SETS.items() if any((data / "glue" / f).is_dir() for f in (one.folder, name))]
    if "glue" in names and not there:
        raise UserError(f"{data / 'glue'} holds none of GLUE's tasks", "", "give --data FOLDER with glue/SST-2, ...")
    wanted = [task for name in names for task in (there if name == "glue" else [name])]
    return list(dict.fromkeys(wanted))


def fine_tune(model: str, tokenizer: str, names: Sequence[str], plan: Plan, output: Path) -> dict[str, Any]:
    """Fine-tune and score; the result is also written to `<output>/summary.json`, beside those of other tasks that the
    same model learnt by the same recipe.

    Args:
        model: a folder in the Hugging Face format, or RUN@STEP.
        tokenizer: what it was pretrained with.
        names: see `chosen`.

    Returns:
        task -> the spread of its score over seeds, the scores themselves and every metric's median; `macro` and
        `macro_without_wnli` over GLUE's tasks, and which of the nine are missing from it; the model and the recipe.
    """
    tasks = chosen(names, plan.data)
    trees = {task: _tree(task, model, tokenizer, plan) for task in tasks}  # mistakes show before the first run
    result = _earlier(model, plan, output)
    named = [(f"{task}-seed-{seed}", seed, tree) for task, tree in trees.items() for seed in plan.seeds]
    runs: list[Tree] = [{**tree, "name": name, "seed": seed, "directory": str(output)} for name, seed, tree in named]
    for run in runs:
        _refuse_another(run)
    scored = side_by_side(lambda tree, share: _run(tree, output, share), runs, plan.jobs)
    for task in tasks:
        found = [next(scored) for _ in plan.seeds]
        metrics = {name: spread([scores[name] for scores in found])["median"] for name in found[0] if "/" in name}
        scores = [one["score"] for one in found]
        result[task] = {**spread(scores), "scores": scores, **metrics, "num_parameters": found[0]["num_parameters"]}
        _conclude(result, output)
    return result


def _earlier(model: str, plan: Plan, output: Path) -> dict[str, Any]:
    """What other commands have found of the same model and recipe."""
    whose = {"model": model, "recipe": None if plan.recipe is None else str(plan.recipe)}
    summary = output / "summary.json"
    found = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else {}
    same = all(found.get(key) == value for key, value in whose.items())
    return {**whose, **{task: found[task] for task in NAMES if same and task in found}}


def _conclude(result: dict[str, Any], output: Path) -> None:
    glue = {task: result[task]["median"] for task in SETS if task in result}
    if glue:
        result["macro"], result["macro_without_wnli"] = macro(glue), macro(glue, without=["wnli"])
        result["missing_of_glue"] = [task for task in SETS if task not in glue]
    write_json(output / "summary.json", result)


def _tree(task: str, model: str, tokenizer: str, plan: Plan) -> Tree:
    """The config of a task's runs, but for name and seed."""
    base = plan.recipe or presets() / "tasks" / f"finetune_{task if task in _OWN_PRESET else 'sst2'}.yaml"
    read = read_yaml(base)
    if task in SETS:
        place: Tree = {"kind": "glue", "name": task, "folder": str(plan.data / "glue")}
        if task == "qqp":  # GLUE's own file has lines that lack columns
            place["skip_short_lines"] = True
    elif task in ("imdb", "race"):
        place = {"kind": task, "folder": str(plan.data / task)}
    else:
        asked = override({"task": read.get("task") or {}}, plan.assignments)["task"]
        version = str(asked.get("version", "1.1"))
        place = {"kind": "squad", **{part: str(_squad(plan.data, part, version)) for part in ("train", "dev")}}
    student = read.get("student") or {}
    if student.get("kind", "hf") == "hf":
        init = {**student.get("init", {}), "kind": "folder", "path": model}
        student = {"kind": "hf", **student, "init": init}
    recipe = read.get("task") or {}
    same = recipe.get("kind") == place["kind"] == "squad"  # the other kinds' fields are of one task of many
    kept = {key: value for key, value in recipe.items() if same or key in _KEPT}
    tree = {**read, "task": {**kept, **place, "tokenizer": tokenizer}, "student": student}
    _refuse_taken(plan.assignments)
    tree = override(tree, plan.assignments)
    train = tree.get("train") or {}
    config = check({**tree, "name": task, "train": {**train, "steps": train.get("steps", 1)}}, str(base))
    assert config.task is not None
    for part in config.task.dev_parts:  # a mistake in them would show after training
        config.task.open(part)
    steps = math.ceil(plan.epochs * len(config.task.open("train").rows.lengths) / config.batch.global_size)
    return {**tree, "train": {**train, "steps": max(steps, 1)}}


_TAKEN = {"train.steps": "--epochs", "seed": "--seeds", "name": "--output", "directory": "--output"}
"""What `evaluate` fills in, and the option that says how."""


def _refuse_taken(assignments: Sequence[str]) -> None:
    for text in assignments:
        if option := _TAKEN.get(text.partition("=")[0]):
            raise UserError(f"{text}: evaluate fills that in for every task and seed", "", f"use {option} instead")


_KEPT = ("sequence_length", "train_file", "augment")
"""What a recipe says of its task that holds for others too."""

_OWN_PRESET = frozenset({"stsb", "imdb", "squad", "race"})


def _squad(data: Path, part: str, version: str) -> Path:
    """Names such as squad2/, squad-v1.1/ and train-v2.0.json say of which version a file is; others may be of any."""

    def named(file: Path) -> str | None:
        found = re.search(r"(?:squad|v)[-_]?([12])", f"{file.parent.name}/{file.name}", re.IGNORECASE)
        return found and found[1]

    there = sorted(data.glob(f"squad*/{part}*.json"))
    fitting = [file for file in there if named(file) in (None, version[0])]
    if not fitting:
        why = f"looked for squad*/{part}*.json" + (f", and found {there[0]}" if there else "")
        raise UserError(f"{data} has no {part} set of SQuAD {version}", why, "give another --data")
    return min(fitting, key=lambda file: (named(file) is None, file))


_SCORING = threading.Lock()
"""Held by the one run that is scored, in this process and with all of its threads."""


def _refuse_another(tree: Tree) -> None:
    """Raises:
    UserError: what has been learnt in this run's place was learnt otherwise.
    """
    config = check(tree, tree["name"])
    directory = RunDirectory(config.run_directory)
    differing = directory.differing(config)[1] if directory.resolved_config.exists() else []
    if differing:
        fix = "give another --output, or remove the run"
        raise UserError(f"{directory.path} was learnt otherwise", "\n  ".join(differing), fix)


def _run(tree: Tree, output: Path, share: Share) -> dict[str, Any]:
    """Train, or go on with it, and score; a run that was scored is not touched."""
    run = output / tree["name"]
    scored = RunDirectory(run).evaluation / "task.json"
    config = output / f"{tree['name']}.yaml"
    text = yaml.safe_dump(tree, sort_keys=False)
    if scored.exists() and config.exists() and config.read_text(encoding="utf-8") == text:
        return dict(json.loads(scored.read_text(encoding="utf-8")))
    with atomic_write(config) as handle:
        handle.write(text)
    log.get().info(f"{run}: {tree['train']['steps']} steps")
    command = [sys.executable, "-m", "megadistill", "train", str(config)]
    environment = {**os.environ, **share}
    done = subprocess.run(command, env=environment, stdout=sys.stderr, check=False)  # stdout is for the scores
    if done.returncode == Exit.STOPPED:
        raise UserError(f"{run} was stopped after a checkpoint", "", "the same command goes on")
    if done.returncode:
        raise UserError(f"{run} failed with exit code {done.returncode}", "its own message stands above")
    with _SCORING:
        return dict(evaluate(run)["task"])
