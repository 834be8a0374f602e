"""From a config to the parts of a run, top to bottom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megadistill.core import seeds
from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.data.stream import Stream
from megadistill.data.tokenization import load_tokenizer
from megadistill.models.initialize import seeded
from megadistill.models.likeness import likeness
from megadistill.models.signals import LanguageModel
from megadistill.objectives.base import Loss
from megadistill.run.config import RunConfig
from megadistill.run.fitting import refuse_other_tokenizer, refuse_unfit
from megadistill.run.trained import located
from megadistill.teachers.base import Source
from megadistill.teachers.guard import guard

TRIAL_ROWS = 8
"""Rows of the data that a teacher proves itself on, the same on every rank."""


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


def build(config: RunConfig, world: World, device: torch.device) -> Parts:
    """Open the data, load the teacher, make the student and its objectives. Writes nothing.

    Raises:
        UserError: whatever of it does not fit together.
    """
    accumulation = config.batch.accumulation(world.size)
    batch = config.batch
    stream = Stream(config.data, world, batch.global_size, batch.micro_size, config.seed, sizes=batch.later_sizes)
    tokenizer = load_tokenizer(config.data.tokenizer)
    vocabulary = tokenizer.vocabulary_size
    teacher, origin = _teacher(config, device)
    models = teacher.models if teacher is not None else ()
    causal = config.data.targets.kind == "clm"
    student = located(config.student).build(
        models[0] if models else origin,
        vocabulary,
        causal,
        seeds.derive(config.seed, "student"),
        tokenizer.special.as_dict(),
    )
    if teacher is not None:
        teacher.attach(student)
    for model in (student, *(teacher.models if teacher is not None else ())):
        model.attends = config.data.attention
    refuse_unfit(config, student, models, teacher.dims if teacher is not None else None, vocabulary)
    for path in config.teacher.paths() if config.teacher is not None else []:
        refuse_other_tokenizer(config, tokenizer, path)
    for model in (student, *models):
        model.check_head(min(8, config.data.sequence_length))
    distils = any(objective.needs().teacher for objective in config.objectives)
    _check_direction(config, "student", student)
    if teacher is not None and distils:
        for model in models:
            _check_direction(config, "teacher", model)
    report: dict[str, Any] | None = None
    if teacher is not None and distils:
        where = next(models[0].parameters()).device if models else device
        trial = stream.part.batch(stream.order.locate(np.arange(TRIAL_ROWS)), config.seed, "targets").to(where)
        student.to(where)
        assert config.teacher is not None
        if config.teacher.guard is not None:
            counts = stream.part.vocabulary.counts
            guard(config.teacher.guard, teacher, student, trial, vocabulary, counts)
        if models:
            report = likeness(student, models[0], trial)
    if config.engine.activation_checkpointing and any(o.needs().again for o in config.objectives):
        raise UserError(
            "an objective that exchanges hidden states cannot go with engine.activation_checkpointing",
            "what is recomputed in the backward pass would not be what was exchanged",
            "set engine.activation_checkpointing: false (it costs the activations' memory), or leave the objective out",
        )
    if config.engine.activation_checkpointing:
        student.hf.gradient_checkpointing_enable({"use_reentrant": False})
    teacher_dims = teacher.dims if teacher is not None else None
    with seeded(seeds.derive(config.seed, "objectives")):
        losses = [objective.build(student.dims, teacher_dims) for objective in config.objectives]
    for loss in losses:  # one may hold a second model that learns
        for module in loss.modules() if isinstance(loss, torch.nn.Module) else ():
            if isinstance(module, LanguageModel):
                module.attends = config.data.attention
    if not distils:
        teacher = None  # it only gave the student its first weights
    return Parts(stream, teacher, student, losses, accumulation, report)


def _teacher(config: RunConfig, device: torch.device) -> tuple[Source | None, LanguageModel | None]:
    """The teacher; and, where it has no model in the process, one for the student to start from, if it needs one."""
    if config.teacher is None:
        return None, None
    located_teacher = located(config.teacher)
    located_teacher.check(config.data)
    return located_teacher.build(device), located_teacher.origin() if config.student.starts_from_teacher else None


def _check_direction(config: RunConfig, who: str, model: LanguageModel) -> None:
    """A model that reads ahead finds the next token in its input; one that does not cannot use what follows a mask."""
    name, targets = type(model.hf).__name__, config.data.targets.kind
    ahead = model.sees_ahead(min(8, config.data.sequence_length))
    if targets == "clm" and ahead:
        raise UserError(
            f"data.targets is clm, and the {who} ({name}) sees the tokens that it has to predict",
            "its states at a token change with the tokens after it",
            f"use a causal {who}, such as gpt2 (or is_decoder: true in its config), or data.targets: {{kind: mlm}}",
        )
    if targets == "mlm" and not ahead:
        raise UserError(
            f"data.targets is mlm, and the {who} ({name}) sees only the tokens before a masked one",
            "its states at a token do not change with the tokens after it",
            f"use a bidirectional {who}, such as bert, or data.targets: {{kind: clm}}",
        )
