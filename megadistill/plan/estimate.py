"""From a config to everything that a plan says of it. Loads no weights and needs no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from megadistill.core.errors import UserError
from megadistill.core.schema import override
from megadistill.data.tokenization import load_tokenizer
from megadistill.engine.optimizer import build_optimizer
from megadistill.models.images import ImageModel
from megadistill.objectives.base import build_loss
from megadistill.objectives.step import DistillStep
from megadistill.plan.footprint import Footprint, footprint
from megadistill.plan.machine import Machine
from megadistill.plan.rows import Counted, counted, micro_batch, opened
from megadistill.plan.work import Projection, Work, checkpoint_bytes, interval, project, work
from megadistill.plan.zero import DTYPES, Sharded
from megadistill.run.config import RunConfig, check, dump
from megadistill.run.empty import empty
from megadistill.run.fitting import check_answers

PROJECTED = (8, 64, 512)


@dataclass(frozen=True)
class Parameters:
    """How many values models have."""

    student: int
    learned: int
    """All that the optimizer moves: of the student, and what objectives learn besides."""
    teacher: int


@dataclass(frozen=True)
class Plan:
    """What a run is and takes."""

    parameters: Parameters
    footprint: Footprint
    machine: Machine
    micro_size: int
    """Rows of a micro-batch; where the config says auto, the most that fit by this estimate (else the fewest)."""
    accumulation: int
    rows: Counted | None
    """Of a task; None: pretraining, whose rows are all full."""
    work: Work
    checkpoint: int
    """Bytes of one."""
    save_seconds: float
    best_interval: float
    """Seconds between two checkpoints."""
    projections: list[Projection]
    change: str | None
    """The cheapest change that makes it fit; None where it fits, or nothing tried does."""

    @property
    def fits(self) -> bool:
        return _fits(self.footprint, self.machine)


USABLE = 0.9
"""Share of a GPU's memory that is left beside CUDA's context, NCCL's buffers and what the allocator cannot fill."""


def _fits(found: Footprint, machine: Machine) -> bool:
    return max(found.peak, found.teacher_rank) <= machine.memory * USABLE


def plan(config: RunConfig, machine: Machine) -> Plan:
    """Everything.

    Raises:
        UserError: the batch does not divide by the GPUs, models do not fit together, or a task's files are not there.
    """
    students = config.students(machine.gpus)
    examples = None if config.task is None else opened(config.task)
    config, parameters, found = _settled(config, machine, students)
    rows = None if examples is None else counted(examples, config, students)
    usual = found if rows is None else measure(config, students, rows.typical)[1]
    done = work(config, usual, machine, rows)
    size = checkpoint_bytes(config, parameters.learned, parameters.student)
    save = size / machine.disk
    computing = done.step_seconds or 0.0
    if machine.tokens_per_second is not None:  # what was measured sends too
        now = project(config, parameters.learned, computing, machine, students, config.engine.zero_stage)
        computing = max(2 * computing - now.seconds, 0.0)
    made = Plan(
        parameters,
        found,
        machine,
        config.batch.rows_per_pass,
        config.batch.accumulation(students),
        rows,
        done,
        size,
        save,
        interval(save, machine.hours_between_failures * 3600 / machine.gpus),
        [project(config, parameters.learned, computing, machine, n, s) for n in PROJECTED for s in (1, 2, 3)],
        None,
    )
    return made if made.fits else replace(made, change=cheapest(config, machine))


def _settled(config: RunConfig, machine: Machine, ranks: int) -> tuple[RunConfig, Parameters, Footprint]:
    """With a number for `batch.micro_size: auto`."""
    if config.batch.micro_size != "auto":
        return config, *measure(config, ranks)

    def tried(rows: int) -> tuple[RunConfig, Parameters, Footprint]:
        one = config.with_micro_size(rows)
        return one, *measure(one, ranks)

    choices = config.micro_sizes(ranks)
    best, fits, does_not = tried(choices[0]), 0, len(choices)
    while does_not - fits > 1:
        middle = (fits + does_not) // 2
        made = tried(choices[middle])
        if _fits(made[2], machine):
            best, fits = made, middle
        else:
            does_not = middle
    return best


def measure(config: RunConfig, ranks: int, width: int | None = None) -> tuple[Parameters, Footprint]:
    """Sizes, and what a rank of so many GPUs holds and computes.

    Args:
        width: positions of a row; None: as many as a row may have.

    Raises:
        UserError: as `plan`.
    """
    words = None if config.words is None else load_tokenizer(config.words.tokenizer)
    vocabulary, special = (None, {}) if words is None else (words.vocabulary_size, words.special.as_dict())
    head = None if config.task is None else config.task.head
    models = empty(config, vocabulary, special, torch.device("cuda"), head)
    student = models.student
    if student is None:
        raise UserError(f"plan cannot tell the sizes of student: {config.student.kind}", "", "use student: hf")
    if head is not None:
        check_answers(head, student, models.teachers if config.distils else ())
        for model in models.teachers:
            if isinstance(model, ImageModel) and model.view is None:
                model.sees(head.processor)
    with torch.device("meta"):
        losses = [build_loss(one, n, student.dims, models.dims) for n, one in enumerate(config.objectives)]
        step = DistillStep(student, config.objectives, losses).to(DTYPES[config.engine.precision]).train()
    if config.engine.activation_checkpointing:
        student.hf.gradient_checkpointing_enable({"use_reentrant": False})
    groups = [group["params"] for group in build_optimizer(config.optimizer, step).param_groups]
    sizes = Parameters(
        sum(p.numel() for p in student.parameters()),
        sum(p.numel() for group in groups for p in group),
        sum(p.numel() for model in models.teachers for p in model.parameters()),
    )
    found = footprint(
        step,
        models.teacher if config.distils else None,
        micro_batch(config, vocabulary or 0, width or config.sequence_length, head),
        lambda: Sharded(config.engine, groups, ranks, on_gpu=True),
        config.batch.accumulation(ranks),
        ranks,
        on_gpu=True,
    )
    return sizes, found


def cheapest(config: RunConfig, machine: Machine) -> str | None:
    """The first change that makes it fit, of those that cost nothing, then some, then more."""
    for changes in _changes(config, machine.gpus):
        try:
            changed = check(override(dump(config), changes), "the change")
            _, found = measure(changed, changed.students(machine.gpus))
        except UserError:
            continue
        if _fits(found, machine):
            return " ".join(changes)
    return None


def _changes(config: RunConfig, ranks: int) -> Iterator[list[str]]:
    """Overrides, the cheapest first."""
    engine = config.engine
    stage = ["engine.zero_stage=2"] if engine.zero_stage < 2 else []
    if stage and engine.gradient_accumulation_dtype == engine.precision != "fp32":
        stage.append("engine.gradient_accumulation_dtype=fp32")
    if stage:
        yield stage  # the same bytes are sent
    smaller, micro = [], config.batch.rows_per_pass
    for rows in reversed(config.micro_sizes(config.students(ranks))):
        if 2 * rows <= micro:
            micro = rows
            smaller.append([f"batch.micro_size={rows}"])
    yield from smaller[:2]  # the same gradient, in more and less busy passes
    spread = ["teacher.placement=sharded"] if getattr(config.teacher, "placement", "") == "replicated" else []
    if spread and ranks > 1:
        yield spread  # the teacher is gathered for every pass
    exchanging = any(objective.needs().again for objective in config.objectives)
    recomputed = engine.activation_checkpointing or exchanging  # what is recomputed is not what was exchanged
    less = [] if recomputed else ["engine.activation_checkpointing=true"]
    if less:
        yield less  # a third more compute
        yield stage + less
    yield from (stage + less + each for each in smaller)
    whole = ["engine.zero_stage=3", *stage[1:]]
    yield whole + less + (smaller[-1] if smaller else [])
    yield whole + less + spread + (smaller[-1] if smaller else [])
    yield [*whole, *less, *spread, *(smaller[-1] if smaller else []), "engine.offload_optimizer=cpu"]
