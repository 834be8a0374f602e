"""Are the files that a run reads what it needs? Told before it is started, as far as they are here and quickly read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from megadistill.core.errors import UserError
from megadistill.core.files import nearest, shipped
from megadistill.data.config import DataConfig
from megadistill.models.heads import TaskHead
from megadistill.run.config import RunConfig
from megadistill.tasks.base import Task, TokenTask
from megadistill.tasks.tables import there_is

_WILD = frozenset("*?[")


@contextmanager
def collected(problems: list[UserError], field: str = "") -> Iterator[None]:
    """What is raised inside joins the others, with the field that it is about where it does not say so itself."""
    try:
        yield
    except UserError as error:
        problems.append(UserError(f"{field}: {error.what}", error.why, error.fix) if field else error)


def is_here(path: str) -> bool:
    """Whether a model or tokenizer can be looked at without network."""
    return Path(shipped(path)).expanduser().exists()


def away(path: str) -> str:
    """What is said of one that cannot."""
    near = nearest(path)
    return f"{path}: it is not here yet" + (f" (there is {near})" if near else "")


def look(config: RunConfig, remarks: list[str]) -> tuple[list[UserError], TaskHead | None]:
    """
    Args:
        remarks: receives what was not looked at.

    Returns:
        what is wrong; and what a task asks for, None where that is not known.
    """
    problems: list[UserError] = []
    if config.data is not None:
        _text(config.data, problems, remarks)
    for name, paths in config.student.files().items():
        for path in paths:
            if _should_be_here(path) and not is_here(path):
                fix = there_is(path) + "check the path; it is relative to where you are"
                problems.append(UserError(f"student.{name}: no file {path}", "", fix))
            elif not is_here(path):
                remarks.append(f"not looked at: student.{name} {away(path)}")
    return problems, None if config.task is None else _task(config.task, problems, remarks)


def _text(data: DataConfig, problems: list[UserError], remarks: list[str]) -> None:
    for number, corpus in enumerate(data.corpora):
        files: Sequence[str] = getattr(corpus, "files", ())
        if not files or (data.dir / corpus.name).exists():  # they have been read
            continue
        if absent := [file for file in files if not _should_be_here(file)]:
            told = f"data.corpora.{number}.files {', '.join(absent)}: not on this machine"
            remarks.append(f"not looked at: {told}{_near(absent)}")
            continue
        with collected(problems, f"data.corpora.{number}.files"):
            corpus.sources()


def _task(task: Task, problems: list[UserError], remarks: list[str]) -> TaskHead | None:
    augment = task.augment if isinstance(task, TokenTask) else None
    if augment is not None:
        sources = {name: str(path) for name, path in augment.sources().items()}
        remarks += [
            f"not looked at: task.augment.{name} {away(path)}" for name, path in sources.items() if not is_here(path)
        ]
        with collected(problems):
            augment.check()
    absent = [(name, path) for name, paths in task.files().items() for path in paths if not _should_be_here(path)]
    if absent:
        told = ", ".join(f"task.{name} {path}" for name, path in absent)
        remarks.append(f"not looked at: {told}: not on this machine{_near([path for _, path in absent])}")
    before = len(problems)
    for part in () if absent else ("train", *task.dev_parts):
        with collected(problems):
            task.look(part)
    unread = bool(absent) or len(problems) > before
    head = None
    with collected(problems):
        head = task.known_head(here=not unread)
        if head is None and not unread:
            remarks.append("the models are not compared with the task: only all of its training files tell its classes")
    return head


def _should_be_here(pattern: str) -> bool:
    """Whether a file that is missing is a mistake: the folder that it, or the first wildcard, should be in is here."""
    if "://" in pattern:
        return False
    folder = _folder(pattern)
    return folder.is_dir() and folder != Path(folder.anchor or "nowhere")


def _near(patterns: Sequence[str]) -> str:
    """A folder that is here by nearly the name of one that is not."""
    near = next(filter(None, (nearest(str(_folder(pattern))) for pattern in patterns if "://" not in pattern)), "")
    return f" (there is {near})" if near else ""


def _folder(pattern: str) -> Path:
    parts = Path(pattern).expanduser().parts
    fixed = next((n for n, part in enumerate(parts) if _WILD & set(part)), len(parts) - 1)
    return Path(*parts[:fixed])
