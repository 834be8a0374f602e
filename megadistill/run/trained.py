"""What a run has learnt so far: the checkpoint that evaluation, export, and runs that start from it, read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml

from megadistill.core import log
from megadistill.core.errors import UserError
from megadistill.core.schema import Strict
from megadistill.engine import checkpoint
from megadistill.run.config import RunConfig, check
from megadistill.run.directory import RunDirectory
from megadistill.teachers.base import Teacher

Part = TypeVar("Part", bound=Strict)


def trained(directory: RunDirectory) -> checkpoint.Found:
    """The newest checkpoint of a run; damaged ones that were passed over are logged.

    Raises:
        UserError: it has none yet, or none that verifies.
    """
    found = checkpoint.newest(directory.checkpoints, directory.history(), log.get().warning)
    if found is None:
        raise UserError(f"{directory.path} has no checkpoint yet", fix="train it first")
    return found


def config_of(directory: RunDirectory) -> RunConfig:
    """The config that a run was last trained by.

    Raises:
        UserError: it is none, or one of its plugins is not here.
    """
    path = directory.resolved_config
    return check(yaml.safe_load(path.read_text(encoding="utf-8")), str(path))


def student_folder(spec: str) -> str:
    """The folder of a model that a config names as RUN, RUN@STEP, RUN@end, or anything else, which stays as it is.

    Raises:
        UserError: the run has no such checkpoint, or it does not verify; or RUN@end is not done.
    """
    run, at = _parted(spec)
    if not (Path(run) / "run.json").exists():
        if at == "end":
            raise UserError(f"{spec}: there is no run {run}", "", "train it first, to its end")
        return spec
    directory = RunDirectory(Path(run))
    if at == "end" and directory.state != "done":
        raise UserError(f"{spec}: the run is not done", f"it is {directory.state}", "see it through first")
    if at in ("", "end"):
        return str(trained(directory).path / "student")
    step = int(at)
    on_line = [
        c for c in checkpoint.committed(directory.checkpoints) if checkpoint.on_line(directory.history(), *c[:2])
    ]
    for there, _, path in on_line:
        if there == step:
            problems = [text for text in checkpoint.verify(directory.checkpoints) if text.startswith(path.name)]
            if problems:
                raise UserError(f"{spec}: the checkpoint is damaged", problems[0], "name another step of the run")
            return str(path / "student")
    raise UserError(
        f"{spec}: the run keeps no checkpoint of that step",
        f"it has {', '.join(str(c[0]) for c in sorted(on_line)) or 'none'}",
        "name one of them, or set checkpoint.keep_every_steps in that run",
    )


def _parted(spec: str) -> tuple[str, str]:
    """A run and a step of it, `end`, or nothing."""
    match = re.fullmatch(r"(.+)@(\d+|end)", spec)
    return (match[1], match[2]) if match else (spec, "")


def tokenizer_of(spec: str) -> str:
    """Where the tokenizer is of a model that a config names: a run's config says, else it is in the model's folder."""
    run = Path(_parted(spec)[0])
    if not (run / "run.json").exists():
        return spec
    config = yaml.safe_load(RunDirectory(run).resolved_config.read_text(encoding="utf-8"))
    found = (config.get("task") or config["data"]).get("tokenizer")
    if found is None:
        raise UserError(f"{run} learnt images: it has no tokenizer", "", "name a model of text, or leave the task out")
    return str(found)


def teacher_of(config: RunConfig) -> Teacher | None:
    """The teacher that a run's config means, with runs replaced by their students.

    Raises:
        UserError: it means none, or a run is not as far.
    """
    return None if (teacher := config.teacher_meant) is None else located(teacher)


def located(part: Part) -> Part:
    """A teacher's or student's config with every `path` that names a run replaced by that run's student."""
    changed: dict[str, Any] = {}
    for name in type(part).model_fields:
        value = getattr(part, name)
        if name == "path" and isinstance(value, str):
            changed[name] = student_folder(value)
        elif isinstance(value, Strict):
            changed[name] = located(value)
        elif isinstance(value, list) and value and isinstance(value[0], Strict):
            changed[name] = [located(item) for item in value]
    return part.model_copy(update=changed)
