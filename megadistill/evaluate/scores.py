"""Which scores a run, or a folder of a model, is asked for as it is, and where they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from megadistill.core.dist import best_device
from megadistill.core.errors import UserError
from megadistill.core.files import write_json
from megadistill.evaluate.heldout import heldout, num_parameters
from megadistill.evaluate.pseudo import pseudo_perplexity
from megadistill.evaluate.tasks import score_task
from megadistill.evaluate.wikitext import Cutting, plain, wikitext
from megadistill.models.loading import load_pretrained
from megadistill.run.config import RunConfig
from megadistill.run.directory import RunDirectory
from megadistill.run.trained import config_of, teacher_of, trained
from megadistill.teachers.base import Source
from megadistill.teachers.online import OnlineSource

FOLDER_TASKS = ("wikitext", "pseudo_perplexity")
"""What any language model can be scored with."""
TEXT_TASKS, OWN_TASK = ("heldout", *FOLDER_TASKS), "task"
"""What a run on text can be scored with, and what a run on a task is."""


def evaluate(
    run: Path, tasks: list[str] | None = None, wikitext_folder: Path | None = None, rows: int | None = None
) -> dict[str, Any]:
    """Score the newest checkpoint of a run; every task's result is written to `<run>/evaluation/<task>.json`.

    Args:
        run: a run directory.
        tasks: some of `TEXT_TASKS`, or `OWN_TASK` for a run that has one; None: heldout, or that.
        wikitext_folder: holds WikiText's raw test part; only `FOLDER_TASKS` need it.
        rows: score at most so many rows, held-out or of pseudo-perplexity; None: all of them, or its own number.

    Returns:
        task -> its numbers, the teacher's as `teacher_...`; of held-out text see `evaluate.heldout`.

    Raises:
        UserError: an unknown task, no checkpoint, or text that is not there.
    """
    directory = RunDirectory(run)
    config = config_of(directory)
    known = TEXT_TASKS if config.task is None else (OWN_TASK,)
    tasks = [known[0]] if tasks is None else tasks
    unknown = [task for task in tasks if task not in known]
    if unknown or not tasks:
        raise UserError(
            f"no evaluation task {', '.join(unknown) or '(none given)'}",
            f"this run can be scored with: {', '.join(known)}",
        )
    _refuse_without_text(tasks, wikitext_folder)
    found = trained(directory)
    device = best_device()
    folder = str(found.path / "student")
    student = load_pretrained(folder).to(device)
    student.attends = config.attends
    if config.task is not None:
        scores = {"step": found.step, "num_parameters": num_parameters(student)}
        scores |= score_task(config.task, student, directory.evaluation)
        write_json(directory.evaluation / f"{OWN_TASK}.json", scores)
        return {OWN_TASK: scores}
    asked, teacher = OnlineSource(folder, student), _teacher(config, device)
    results: dict[str, Any] = {}
    for task in tasks:
        if task == "heldout":
            scores = heldout(config, asked, teacher, rows)
            write_json(directory.evaluation / "heldout_rows.json", scores.pop("rows"))
        else:
            scores = _on_wikitext(task, wikitext_folder, config.text, asked, teacher, rows)
        results[task] = {"step": found.step, **scores}
        write_json(directory.evaluation / f"{task}.json", results[task])
    return results


def evaluate_folder(
    folder: Path, tokenizer: str, tasks: list[str], wikitext_folder: Path | None, output: Path, rows: int | None = None
) -> dict[str, Any]:
    """Score a language model in the Hugging Face format; likewise written to `<output>/<task>.json`.

    Args:
        tokenizer: the model's.
        tasks: some of `FOLDER_TASKS`.
    """
    _refuse_without_text(tasks, wikitext_folder)
    model = load_pretrained(str(folder)).to(best_device())
    data, asked, results = plain(model, tokenizer), OnlineSource(str(folder), model), {}
    for task in tasks:
        scores = _on_wikitext(task, wikitext_folder, data, asked, None, rows)
        results[task] = {**scores, "num_parameters": num_parameters(model)}
        write_json(output / f"{task}.json", results[task])
    return results


def _refuse_without_text(tasks: list[str], wikitext_folder: Path | None) -> None:
    needed = [task for task in tasks if task in FOLDER_TASKS]
    if needed and wikitext_folder is None:
        raise UserError(f"{', '.join(needed)} needs a text", fix="give --wikitext FOLDER, with test.txt in it")


def _on_wikitext(
    task: str,
    folder: Path | None,
    data: Cutting,
    student: Source,
    teacher: Source | None,
    rows: int | None,
) -> dict[str, Any]:
    assert folder is not None
    if task == "wikitext":
        return wikitext(folder, data, student, teacher)
    return pseudo_perplexity(folder, data, student, teacher, rows)


def _teacher(config: RunConfig, device: torch.device) -> Source | None:
    """The teacher, also where it only gave the student its first weights, or has answered before."""
    part = teacher_of(config)
    source = None if part is None else part.asked(device)
    if source is None or not source.models:
        return None
    for model in source.models:
        model.to(device).attends = config.attends  # what training spreads over ranks is whole here
    return source
