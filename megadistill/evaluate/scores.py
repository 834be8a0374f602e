"""Which scores a run is asked for, and where they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from megadistill.core.dist import best_device
from megadistill.core.errors import UserError
from megadistill.core.files import write_json
from megadistill.evaluate.heldout import heldout, num_parameters
from megadistill.evaluate.tasks import score_task
from megadistill.evaluate.wikitext import wikitext
from megadistill.models.loading import load_pretrained
from megadistill.models.signals import LanguageModel
from megadistill.run.config import RunConfig, check
from megadistill.run.directory import RunDirectory
from megadistill.run.trained import located, trained

TEXT_TASKS, OWN_TASK = ("heldout", "wikitext"), "task"
"""What a run on text can be scored with, and what a run on a task is."""


def evaluate(
    run: Path, tasks: list[str] | None = None, wikitext_folder: Path | None = None, rows: int | None = None
) -> dict[str, Any]:
    """Score the newest checkpoint of a run; every task's result is written to `<run>/evaluation/<task>.json`.

    Args:
        run: a run directory.
        tasks: some of `TEXT_TASKS`, or `OWN_TASK` for a run that has one; None: heldout, or that.
        wikitext_folder: holds WikiText's raw test part; only that task needs it.
        rows: score at most so many held-out rows; None: all.

    Returns:
        task -> its numbers, the teacher's as `teacher_...`; of held-out text see `evaluate.heldout`.

    Raises:
        UserError: an unknown task, no checkpoint, or text that is not there.
    """
    directory = RunDirectory(run)
    config = check(
        yaml.safe_load(directory.resolved_config.read_text(encoding="utf-8")), str(directory.resolved_config)
    )
    known = TEXT_TASKS if config.task is None else (OWN_TASK,)
    tasks = [known[0]] if tasks is None else tasks
    unknown = [task for task in tasks if task not in known]
    if unknown or not tasks:
        raise UserError(
            f"no evaluation task {', '.join(unknown) or '(none given)'}",
            f"this run can be scored with: {', '.join(known)}",
        )
    if "wikitext" in tasks and wikitext_folder is None:
        raise UserError("the wikitext task needs its text", fix="give --wikitext FOLDER, with test.txt in it")
    found = trained(directory)
    device = best_device()
    student = load_pretrained(str(found.path / "student")).to(device)
    student.attends = config.attention
    if config.task is not None:
        scores = {"step": found.step, "num_parameters": num_parameters(student)}
        scores |= score_task(config.task, student, directory.evaluation)
        write_json(directory.evaluation / f"{OWN_TASK}.json", scores)
        return {OWN_TASK: scores}
    teacher = _teacher(config, device)
    results: dict[str, Any] = {}
    for task in tasks:
        if task == "heldout":
            scores = heldout(config, student, teacher, rows)
            write_json(directory.evaluation / "heldout_rows.json", scores.pop("rows"))
        else:
            assert wikitext_folder is not None
            scores = wikitext(wikitext_folder, config.text, student, teacher)
        results[task] = {"step": found.step, **scores}
        write_json(directory.evaluation / f"{task}.json", results[task])
    return results


def _teacher(config: RunConfig, device: torch.device) -> LanguageModel | None:
    """The teacher's model, also where it only gave the student its first weights, or has answered before."""
    if config.teacher is None:
        return None
    part = located(config.teacher)
    origin = part.origin()
    models = part.build(device).models if origin is None else (origin.to(device),)
    for model in models:
        model.attends = config.attention
    return models[0] if models else None
