"""Which scores a run is asked for, and where they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml

from megadistill.core.dist import best_device
from megadistill.core.errors import UserError
from megadistill.core.files import write_json
from megadistill.evaluate.heldout import heldout
from megadistill.evaluate.wikitext import wikitext
from megadistill.models.loading import load_pretrained
from megadistill.models.signals import LanguageModel
from megadistill.run.config import RunConfig, check
from megadistill.run.directory import RunDirectory
from megadistill.run.trained import located, trained

TASKS = ("heldout", "wikitext")


def evaluate(
    run: Path, tasks: list[str], wikitext_folder: Path | None = None, rows: int | None = None
) -> dict[str, Any]:
    """Score the newest checkpoint of a run; every task's result is written to `<run>/evaluation/<task>.json`.

    Args:
        run: a run directory.
        tasks: some of `TASKS`.
        wikitext_folder: holds WikiText's raw test part; only that task needs it.
        rows: score at most so many held-out rows; None: all.

    Returns:
        task -> flat numbers, the teacher's as `teacher_...`.

    Raises:
        UserError: an unknown task, no checkpoint, or text that is not there.
    """
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise UserError(f"no evaluation task {', '.join(unknown) or '(none given)'}", f"there are: {', '.join(TASKS)}")
    if "wikitext" in tasks and wikitext_folder is None:
        raise UserError("the wikitext task needs its text", fix="give --wikitext FOLDER, with test.txt in it")
    directory = RunDirectory(run)
    config = check(
        yaml.safe_load(directory.resolved_config.read_text(encoding="utf-8")), str(directory.resolved_config)
    )
    found = trained(directory)
    device = best_device()
    student = load_pretrained(str(found.path / "student")).to(device)
    student.attends = config.data.attention
    teacher = _teacher(config, device)
    results: dict[str, Any] = {}
    for task in tasks:
        if task == "heldout":
            scores = heldout(config, student, teacher, rows)
            write_json(directory.evaluation / "heldout_rows.json", scores.pop("rows"))
        else:
            assert wikitext_folder is not None
            scores = wikitext(wikitext_folder, config.data, student, teacher)
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
        model.attends = config.data.attention
    return models[0] if models else None
