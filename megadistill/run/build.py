"""From a config to the parts of a run, top to bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megadistill.core import log, seeds
from megadistill.core.dist import World
from megadistill.core.errors import refuse
from megadistill.core.together import on_main, together
from megadistill.core.types import Batch
from megadistill.data.config import DataConfig
from megadistill.data.rows import Rows
from megadistill.data.stream import HeldOut, Stream
from megadistill.data.tokenization import load_tokenizer
from megadistill.models.heads import TaskHead
from megadistill.models.images import PROCESSOR, ImageModel, refuse_misfits
from megadistill.models.initialize import seeded
from megadistill.models.likeness import likeness
from megadistill.models.loading import load_config
from megadistill.models.signals import LanguageModel
from megadistill.objectives.base import Loss, build_loss
from megadistill.run.config import RunConfig
from megadistill.run.fitting import (
    check_answers,
    padding_of,
    refuse_direction,
    refuse_other_tokenizer,
    unfit,
    uninstalled,
)
from megadistill.run.trained import located, teacher_of
from megadistill.tasks.augment.kept import are_made, make
from megadistill.tasks.base import TokenTask
from megadistill.tasks.rows import TaskRows
from megadistill.teachers.base import Source
from megadistill.teachers.guard import guard

TRIAL_ROWS, TRIAL_EXAMPLES = 8, 64
"""Rows of text, and examples of a task, that a teacher proves itself on, the same on every rank."""


@dataclass(frozen=True)
class Parts:
    """What the loop is made of, before DeepSpeed wraps it."""

    stream: Stream
    teacher: Source | None
    student: LanguageModel
    losses: list[Loss]
    accumulation: int
    likeness: dict[str, Any] | None
    """How the student starts beside its teacher; None without one."""
    tokenizer: str | None
    """The fingerprint of the one that made the rows; None: rows are images."""


def build(config: RunConfig, world: World, device: torch.device) -> Parts:
    """Open the data, load the teacher, make the student and its objectives. Writes nothing.

    Raises:
        UserError: whatever of it does not fit together.
    """
    refuse(list(uninstalled(config)), "this machine lacks something")
    accumulation = config.batch.accumulation(world.size)
    batch = config.batch
    augment(config, (world.rank, world.size), device)
    stream = Stream(
        train_rows(config), world, batch.global_size, batch.rows_per_pass, config.seed, sizes=batch.later_sizes
    )
    tokenizer = None if config.words is None else load_tokenizer(config.words.tokenizer)
    vocabulary = 0 if tokenizer is None else tokenizer.vocabulary_size
    head = None if config.task is None else config.task.head
    teacher, origin = _teacher(config, device)
    models = teacher.models if teacher is not None else ()
    causal = config.task is None and config.text.targets.kind == "clm"
    student = located(config.student).build(
        origin,
        vocabulary,
        causal,
        seeds.derive(config.seed, "student"),
        {} if tokenizer is None else tokenizer.special.as_dict(),
        head,
        {} if tokenizer is None else tokenizer.backend.get_vocab(),
    )
    if teacher is not None:
        teacher.attach(student)
    for model in (student, *(teacher.models if teacher is not None else ())):
        model.attends = config.attends
    if head is not None:
        check_answers(head, student, models if config.distils else ())
        if isinstance(student, ImageModel):
            show_images(head, student, [model for model in models if isinstance(model, ImageModel)])
    theirs = teacher.dims if teacher is not None else None
    refuse(list(unfit(config, student, models, theirs, vocabulary)), "the models and the data do not fit together")
    for remark in padding_of(models, student):
        log.get().info(remark)
    for who, part in (("teacher", config.teacher_meant), ("student", config.student)):
        for path in part.paths() if part is not None else []:
            if tokenizer is not None:
                refuse_other_tokenizer(config, tokenizer, path, who)
    for model in (student, *models):
        model.check_head(min(8, config.sequence_length))
    if config.task is None:
        for who, model in (("student", student), *(("teacher", model) for model in models if config.distils)):
            refuse_direction(config, who, model, model.sees_ahead(min(8, config.sequence_length)))
    report: dict[str, Any] | None = None
    if teacher is not None and config.distils:
        where = next(models[0].parameters()).device if models else device
        trial = _trial(config, stream).to(where)
        student.to(where)
        assert config.teacher is not None
        if config.teacher.guard is not None:
            entries = vocabulary if head is None else head.outputs
            guard(config.teacher.guard, teacher, student, trial, entries, stream.part.counts)
        if models and config.task is None:
            report = likeness(student, models[0], trial)
    if config.engine.activation_checkpointing:
        student.hf.gradient_checkpointing_enable({"use_reentrant": False})
    with seeded(seeds.derive(config.seed, "objectives")):
        losses = [build_loss(one, n, student.dims, theirs) for n, one in enumerate(config.objectives)]
    for loss in losses:  # one may hold a second model that learns
        for module in loss.modules() if isinstance(loss, torch.nn.Module) else ():
            if isinstance(module, LanguageModel):
                module.attends = config.attends
    made_by = None if tokenizer is None else tokenizer.fingerprint
    if not config.distils:
        teacher = None  # it only gave the student its first weights
    return Parts(stream, teacher, student, losses, accumulation, report, made_by)


def augment(config: RunConfig, share: tuple[int, int], device: torch.device | None = None) -> Path | None:
    """Make the variants of a task's examples, if it wants any and they are not there; each process its share of them.
    Once all are there, one process encodes them for all.

    Returns:
        the folder that they are in.

    Raises:
        UserError: something that they are made from, or a model of the run, is missing.
    """
    task = config.task
    if not isinstance(task, TokenTask) or task.augment is None:
        return None
    for part in (teacher_of(config), located(config.student)):  # what is not there shows before hours of this
        for path in part.paths() if part is not None else []:
            load_config(path)
    method, examples = task.augment, task.chosen
    folder = together("augment the examples", lambda: make(method, examples, share, device))[0]

    def encode() -> None:
        if are_made(method, examples):  # else other shares are still at it
            task.open("train")

    on_main("encode the examples", encode)
    return folder


def _trial(config: RunConfig, stream: Stream) -> Batch:
    """Rows that a teacher proves itself on."""
    if isinstance(stream.part, TaskRows):
        return stream.part.answered(TRIAL_EXAMPLES)
    some = np.arange(TRIAL_ROWS if config.task is None else TRIAL_EXAMPLES)
    return stream.part.batch(stream.order.locate(some), stream.seed, "targets")


def train_rows(config: RunConfig) -> DataConfig | Rows:
    """What a `Stream` of the run is drawn from: prepared text, or the task's examples."""
    return config.text if config.task is None else config.task.open("train").rows


def held_out(config: RunConfig) -> HeldOut:
    """What the run is measured on while it trains: held-out text, or the task's first dev part."""
    return HeldOut(config.text if config.task is None else config.task.open(config.task.dev_parts[0]).rows)


def show_images(head: TaskHead, student: ImageModel, teachers: Sequence[ImageModel]) -> None:
    """Let a teacher without a processor of its own see what the student sees; one that has its own sees the same crops
    in its own size and colours.

    Raises:
        UserError: see `models.images.refuse_misfits`.
    """
    for teacher in teachers:
        name = type(teacher.hf).__name__
        if teacher.view is None:
            log.get().warning(f"the teacher ({name}) has no {PROCESSOR}: it is shown what the student sees")
            teacher.sees(head.processor)
        elif teacher.view != student.view:
            log.get().info(f"the teacher ({name}) sees the student's images as {teacher.view}")
    refuse_misfits(student, teachers, head.names)


def _teacher(config: RunConfig, device: torch.device) -> tuple[Source | None, LanguageModel | None]:
    """The teacher; and the model for the student to start from: the teacher's own, unless it has none in the process,
    or one of 16 bits, which the student's first weights need not be rounded to."""
    teacher = teacher_of(config)
    if teacher is None:
        return None, None
    if config.data is not None:
        teacher.check(config.data)
    built, starts = teacher.build(device), config.student.starts_from_teacher
    model = built.models[0] if built.models else None
    if starts and (model is None or next(model.parameters()).dtype != torch.float32):
        return built, teacher.stored() or model
    return built, model
