"""Do the sections of a run's config go together? Told from the config alone; `fitting` looks at models and data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from megadistill.core.types import AnswerKind, union_of_needs
from megadistill.objectives.base import Objective
from megadistill.tasks.base import TokenTask

if TYPE_CHECKING:
    from megadistill.run.config import RunConfig


def clashes(config: RunConfig) -> Iterator[str]:
    """Everything that cannot be, each with its path and what to do."""
    if (config.data is None) == (config.task is None):
        both = "" if config.data is None else ", not both"
        yield f"data: give `data` to pretrain or `task` to learn a task{both}"
        return
    for look in (_answers, _teacher, _weights, _rows, _names, _engine):
        yield from look(config)


def oddities(config: RunConfig) -> Iterator[str]:
    """What can be, and is hardly meant."""
    steps = config.steps
    for at, objective in _each(config):
        if objective.weight and not any(map(objective.weight_at, _turns(objective, steps))):
            yield f"{at}: its weight is 0 at each of the {steps:,} steps: see its ramp"
        if said := objective.remark():
            yield f"{at}: {said}"
    for number, change in enumerate(config.batch.schedule):
        if change.from_step > steps:
            yield f"batch.schedule.{number}.from_step: {change.from_step:,} never comes: there are {steps:,} steps"
    end = config.schedule.total_steps or steps
    if end < config.train.steps and not config.learning_rate_factor(config.train.steps):
        yield f"schedule.total_steps: the learning rate is 0 in the last {config.train.steps - end:,} steps; see floor"
    if config.checkpoint.keep_best and config.evaluate.every_steps is None:
        yield "checkpoint.keep_best: only the last step is evaluated; set evaluate.every_steps"
    if config.teacher is not None and not config.distils and not config.student.starts_from_teacher:
        yield f"teacher ({config.teacher.kind}): no objective asks it, and the student does not start from it"


def _each(config: RunConfig, such: Callable[[Objective], object] = lambda _: True) -> Iterator[tuple[str, Objective]]:
    """Objectives, and what messages call them."""
    for number, objective in enumerate(config.objectives):
        if such(objective):
            yield f"objectives.{number} ({objective.label})", objective


def _turns(objective: Objective, steps: int) -> set[int]:
    """Steps that its weight, which goes straight from one to the next, is known by."""
    ramp = objective.ramp
    turns = () if ramp is None else (ramp.from_step, ramp.to_step)
    return {min(max(step, 1), steps) for step in (1, *turns, steps)}


def _answers(config: RunConfig) -> Iterator[str]:
    asked: AnswerKind = "tokens" if config.task is None else config.task.asks
    for number, objective in enumerate(config.objectives):
        if asked not in objective.suits:
            yield f"objectives.{number} ({objective.label}): it cannot learn {_ASKED[asked]}; use {_LEARNS[asked]}"
        elif config.task is not None and getattr(objective, "scope", None) == "tokens":
            yield (
                f"objectives.{number}.scope ({objective.label}): it asks at every token, and a task is answered once a "
                "row; set scope: targets"
            )
        elif why := config.student.cannot(objective.needs()):
            yield f"objectives.{number} ({objective.label}): it cannot teach student ({config.student.kind}): {why}"
    if config.teacher is not None and asked not in config.teacher.suits:
        yield f"teacher ({config.teacher.kind}): it does not teach {_ASKED[asked]}; use online or ensemble"
    augment = config.task.augment if isinstance(config.task, TokenTask) else None
    if augment is not None and augment.answers == "teacher" and not config.distils:
        yield (
            "task.augment: variants have no labels, and no objective learns from a teacher; give one that does "
            "(soft_ce, logits_mse, ...), or set task.augment.answers: original"
        )


def _teacher(config: RunConfig) -> Iterator[str]:
    asking = list(_each(config, lambda objective: objective.needs().teacher))
    teacher = config.teacher
    if teacher is None:
        for at, _ in asking:
            yield f"{at}: it learns from a teacher, and `teacher` is empty; name one, or leave this objective out"
        return
    if config.data is not None and (why := teacher.cannot_read(config.data)):
        yield f"teacher ({teacher.kind}): {why}"
    told = {at: why for at, objective in asking if (why := teacher.cannot(objective.needs()))}
    if not told and (why := teacher.cannot(union_of_needs([objective.needs() for _, objective in asking]))):
        told["objectives"] = why
    for at, why in told.items():
        yield f"{at}: teacher ({teacher.kind}) cannot serve it: {why}"
    if config.teacher_ranks and config.task is not None:
        yield "teacher.placement: own_ranks is for pretraining; a task's teacher has no such; use replicated"
    elif config.teacher_ranks and not asking:
        yield "teacher.placement: own_ranks, and no objective asks the teacher; use replicated"
    absent = getattr(teacher, "absent_until", 0)
    for at, objective in asking:
        if absent and objective.weight_at(absent):
            yield (
                f"{at}: it would learn from a teacher that is not there until step {absent}; "
                f"give ramp: {{from_step: {absent}, to_step: {absent + 1}}}"
            )
    if every := teacher.meets_every:
        keep = config.checkpoint.keep_every_steps
        if every % config.checkpoint.every_steps or keep is None or every % keep:
            yield (
                f"checkpoint: teacher ({teacher.kind}) needs every {every}th step's checkpoint, and so does the other "
                f"run of this one's; set checkpoint.every_steps and checkpoint.keep_every_steps to {every} in both"
            )
    if teacher.reads_student and config.engine.zero_stage == 3:
        yield (
            f"engine.zero_stage: teacher ({teacher.kind}) reads the student's whole weights, which stage 3 keeps in "
            "pieces; use stage 0, 1 or 2 (2 keeps gradients in pieces too)"
        )


def _weights(config: RunConfig) -> Iterator[str]:
    turns = {step for objective in config.objectives for step in _turns(objective, config.steps)}
    if not any(sum(config.weights_at(step)) for step in turns):
        yield "objectives: all weights are 0, so nothing would be learnt; give one of them a weight"


def _rows(config: RunConfig) -> Iterator[str]:
    for at, _ in _each(config, lambda objective: objective.needs().again):
        if config.batch.micro_size == 1:
            yield (
                f"{at}: it exchanges states between rows of a micro-batch, and batch.micro_size is 1; set it to 2 at "
                "least"
            )
        if config.engine.activation_checkpointing:
            yield (
                f"{at}: it exchanges states, and with engine.activation_checkpointing what is recomputed would not be "
                "what was exchanged; set that to false (it costs the activations' memory), or leave this objective out"
            )


def _names(config: RunConfig) -> Iterator[str]:
    times = Counter(objective.label for objective in config.objectives)
    for label, number in times.items():
        if number > 1:
            at = ", ".join(f"objectives.{n}" for n, one in enumerate(config.objectives) if one.label == label)
            yield f"{at}: {label!r} appears twice; give each a `name`"


def _engine(config: RunConfig) -> Iterator[str]:
    if config.log.gradient_shares_every_steps and config.engine.zero_stage == 3:
        yield "log.gradient_shares_every_steps: at engine.zero_stage 3 no rank holds the weights; use stage 0, 1 or 2"


_ASKED: dict[AnswerKind, str] = {
    "tokens": "to predict tokens, which is what `data` asks for",
    "label": "a task's classes",
    "value": "a task's numbers",
    "span": "a task's spans",
    "image": "a task's images",
    "choice": "a task's choices",
}
_LEARNS: dict[AnswerKind, str] = {
    "tokens": "hard_ce, soft_ce, ...",
    "label": "hard_ce, soft_ce and logits_mse with scope: targets, pkd, hidden_mse, ...",
    "value": "value_mse, logits_mse with scope: targets, pkd, hidden_mse, ...",
    "span": "span_ce, span_soft_ce, hidden_mse, ...",
    "image": "hard_ce; soft_ce, teacher_label, logits_mse and kd_compat with scope: targets",
    "choice": "hard_ce, soft_ce and logits_mse with scope: targets, pkd, hidden_mse, ...",
}
