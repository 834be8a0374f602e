"""A run's models without their weights: what config.json and the tokenizer tell of them, on torch's meta device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from megadistill.core.errors import UserError
from megadistill.core.types import Dims
from megadistill.models.heads import TaskHead
from megadistill.models.signals import LanguageModel
from megadistill.run.config import RunConfig
from megadistill.run.trained import located, teacher_of
from megadistill.teachers.base import Source


@dataclass(frozen=True)
class Empty:
    """The models of a run."""

    student: LanguageModel | None
    """None where its sizes cannot be told."""
    teacher: Source | None

    @property
    def teachers(self) -> tuple[LanguageModel, ...]:
        """The teacher's models; none before the first step where it is kept answers."""
        return () if self.teacher is None else tuple(self.teacher.models)

    @property
    def dims(self) -> Dims | None:
        """The teacher's; None without one."""
        return None if self.teacher is None else self.teacher.dims


@contextmanager
def _of(section: str) -> Iterator[None]:
    """What is said inside names its section."""
    try:
        yield
    except UserError as error:
        what = error.what if error.what.startswith(section) else f"{section}: {error.what}"
        raise UserError(what, error.why, error.fix) from error


def empty(
    config: RunConfig,
    vocabulary: int | None,
    special: Mapping[str, int | None],
    device: torch.device,
    head: TaskHead | None = None,
) -> Empty:
    """As `build` would make them.

    Args:
        vocabulary: how many entries the tokenizer has; None: as many as the teacher knows.
        special: its ids by role.
        device: what the teacher would be on, which decides its dtype.
        head: what the run's task asks for.

    Raises:
        UserError: what `build` would.
    """
    who = teacher_of(config)
    with _of("teacher"):
        teacher = None if who is None else who.empty(device)
        origin = teacher.models[0] if teacher is not None and teacher.models else None
        if origin is None and who is not None and config.student.starts_from_teacher:
            origin = who.origin(empty=True)
    if vocabulary is None:
        vocabulary = 30_522 if origin is None else origin.num_tokens
    causal = config.task is None and config.text.targets.kind == "clm"
    with _of("student"):
        student = located(config.student).empty(origin, vocabulary, causal, special, head)
    if teacher is not None and student is not None:
        teacher.attach(student)
    made = Empty(student, teacher)
    for model in (student, *made.teachers):
        if model is not None:
            model.attends = config.attends
    return made
