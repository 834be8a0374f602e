"""Which scores a run is asked for, and where they are kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from megadistill.core.errors import UserError
from megadistill.core.files import write_json
from megadistill.data.tokenization import load_tokenizer
from megadistill.evaluate.heldout import heldout
from megadistill.evaluate.wikitext import wikitext
from megadistill.models.loading import load_pretrained
from megadistill.models.signals import LanguageModel
from megadistill.run.config import RunConfig, check
from megadistill.run.directory import RunDirectory
from megadistill.run.trained import trained

TASKS = ("heldout", "wikitext")


def evaluate(run: Path, tasks: list[str], wikitext_folder: Path | None = None) -> dict[str, Any]:
    """Score the newest checkpoint of a run; every task's result is written to `<run>/evaluation/<task>.json`.

    Returns:
        task -> flat numbers. For wikitext the teacher's are there too, as `teacher_...`.

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
    student = load_pretrained(str(found.path / "student"))
    teacher = _teacher(config)
    results: dict[str, Any] = {}
    for task in tasks:
        if task == "heldout":
            scores = heldout(config, student, teacher)
            write_json(directory.evaluation / "heldout_rows.json", scores.pop("rows"))
        else:
            assert wikitext_folder is not None
            scores = _wikitext(wikitext_folder, config, student, teacher)
        results[task] = {"step": found.step, **scores}
        write_json(directory.evaluation / f"{task}.json", results[task])
    return results


def _wikitext(folder: Path, config: RunConfig, student: LanguageModel, teacher: LanguageModel | None) -> dict[str, Any]:
    tokenizer = load_tokenizer(config.data.tokenizer)
    data = config.data

    def of(model: LanguageModel) -> dict[str, Any]:
        return wikitext(folder, model, tokenizer, data.targets, data.sequence_length)

    scores = of(student)
    return scores if teacher is None else scores | {f"teacher_{key}": value for key, value in of(teacher).items()}


def _teacher(config: RunConfig) -> LanguageModel | None:
    """The teacher's model, also where it only gave the student its first weights."""
    import torch

    if config.teacher is None:
        return None
    return getattr(config.teacher.build(torch.device("cpu")), "model", None)
