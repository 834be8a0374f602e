"""What `megadistill evaluate` is asked for, and who answers it: scores of a model as it is, or as it learns tasks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megadistill.core.errors import UserError
from megadistill.core.files import write_json
from megadistill.evaluate.finetune import NAMES, Plan, fine_tune
from megadistill.evaluate.scores import FOLDER_TASKS, TEXT_TASKS, evaluate, evaluate_folder
from megadistill.evaluate.speed import speed
from megadistill.models.loading import load_pretrained
from megadistill.run.directory import RunDirectory
from megadistill.run.trained import student_folder, tokenizer_of, trained


@dataclass(frozen=True)
class Request:
    """The options of the command line."""

    tasks: list[str] | None = None
    wikitext: Path | None = None
    rows: int | None = None
    data: Path | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: float = 3.0
    recipe: Path | None = None
    output: Path | None = None
    assignments: tuple[str, ...] = ()
    jobs: int = 1


def ask(model: Path, request: Request) -> dict[str, Any]:
    """Score a run or a folder of a model.

    Raises:
        UserError: it is neither, or something that a task needs is missing.
    """
    is_run = (model / "run.json").exists()
    if not is_run and not (model / "config.json").exists():
        raise UserError(
            f"{model} is no run directory and no model folder",
            "it holds neither run.json nor config.json",
            "name a folder that `megadistill train` or save_pretrained has written",
        )
    learnt = [task for task in request.tasks or [] if task in (*NAMES, "glue")]
    as_it_is = None if request.tasks is None else [t for t in request.tasks if t not in (*learnt, "speed")]
    if (learnt or "speed" in (request.tasks or [])) and request.data is None:
        raise UserError("these tasks need their data", ", ".join(request.tasks or []), "give --data FOLDER with glue/")
    if not is_run:
        _refuse_a_runs(model, ["heldout"] if as_it_is is None else as_it_is)
    result: dict[str, Any] = {}
    output = request.output or (model / "evaluation" / "tasks" if is_run else Path("runs") / f"{model.name}-tasks")
    tokenizer = tokenizer_of(str(model)) if not is_run or learnt or "speed" in (request.tasks or []) else ""
    if is_run and as_it_is != []:
        result |= evaluate(model, as_it_is, request.wikitext, request.rows)
    elif as_it_is:
        result |= evaluate_folder(model, tokenizer, as_it_is, request.wikitext, output, request.rows)
    if "speed" in (request.tasks or []):
        assert request.data is not None
        place = Path(student_folder(str(model)))
        result["speed"] = speed(load_pretrained(str(place)), place, request.data / "glue", tokenizer, request.rows)
        write_json((RunDirectory(model).evaluation if is_run else output) / "speed.json", result["speed"])
    if learnt:
        assert request.data is not None
        plan = Plan(request.data, request.seeds, request.epochs, request.recipe, request.assignments, request.jobs)
        spec = f"{model}@{trained(RunDirectory(model)).step}" if is_run else str(model)  # what is learnt later is other
        result |= fine_tune(spec, tokenizer, learnt, plan, output)
    return result


def shown(result: dict[str, Any]) -> str:
    """As JSON that a person can read too: lists of numbers on one line."""
    text = json.dumps(result, indent=2)
    return re.sub(r"\[\n[^][{}\"]*\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text)


def _refuse_a_runs(model: Path, tasks: list[str]) -> None:
    """Of a folder: what only a run can be asked, and what nothing can."""
    unknown = [task for task in tasks if task not in TEXT_TASKS]
    if unknown:
        there = ", ".join((*FOLDER_TASKS, "speed", "glue", *NAMES))
        raise UserError(f"no evaluation task {', '.join(unknown)}", f"{model} can be scored with: {there}")
    if [task for task in tasks if task not in FOLDER_TASKS]:
        raise UserError(
            f"{model} is no run directory",
            "only a run knows its text: heldout",
            f"ask for {', '.join(FOLDER_TASKS)}, or for tasks, as in --tasks sst2 --data FOLDER",
        )
