"""The training loop. Everything megadistill trains, it trains here."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import torch

from megadistill.core import dist, log
from megadistill.core.dist import World
from megadistill.core.errors import Exit
from megadistill.core.types import COUNT_KINDS, Batch
from megadistill.engine import schedule
from megadistill.run.build import build
from megadistill.run.config import RunConfig, load
from megadistill.run.directory import RunDirectory
from megadistill.train import stop
from megadistill.train.job import Job
from megadistill.train.ledger import Done, Ledger, Report
from megadistill.train.record import Recorder


def run(path: Path, assignments: list[str], fresh: bool) -> int:
    """Start or continue the run that a config file describes; returns the exit code."""
    config = load(path, assignments)
    world = dist.from_environment()
    device = dist.connect(world, config.train.timeout_seconds)
    try:
        return train(config, world, device, fresh)
    finally:
        dist.disconnect()


def train(config: RunConfig, world: World, device: torch.device, fresh: bool = False) -> Exit:
    """Build, restore, loop, export.

    Returns:
        DONE, or STOPPED: a checkpoint was written because somebody asked to stop.

    Raises:
        UserError: a mistake in what was given; nothing was written if it shows before the first step.
        Diverged: the loss stayed non-finite.
    """
    log.setup(world.rank)
    parts = build(config, world, device)
    directory = RunDirectory.open(config, fresh, world)
    directory.data_is(parts.stream.fingerprint)
    log.setup(world.rank, directory.log_file(world.rank))
    job = Job(config, parts, directory, world, device)
    first = job.restore() + 1
    ledger = Ledger([o.label for o in config.objectives], [o.weight for o in config.objectives], job.step.count_of)
    steps, nonfinite = config.train.steps, 0

    with closing(
        Recorder(directory, config.log, job.attempt, world.is_main, total_steps=steps, start_step=first - 1)
    ) as record:
        for step, micro_batches in enumerate(parts.stream.prefetching(first - 1, steps), first):
            started = time.perf_counter()
            word = stop.word(directory.control, world.is_main)
            counts, before, word = ledger.exchange(_counts(micro_batches), word)
            if before is not None:
                _write(record, before)
                nonfinite = job.judge(before, nonfinite)
            if word & stop.STOP:
                return job.leave(step - 1)

            sums, teacher = job.accumulate(step, micro_batches, counts)
            factor = schedule.factor(config.schedule, step, config.total_steps)
            update = job.engine.step(factor)
            job.after_step(step)

            rate, seconds = config.optimizer.learning_rate * factor, time.perf_counter() - started
            ledger.pending = Done(step, counts, sums, teacher, update, seconds, rate, job.parameter_hash(step))
            # the first real step is the rehearsal: what would fail at hour six fails now
            if job.due(step, config.evaluate.every_steps) or step == 1:
                record.scores(step, job.hold_out(rehearsal=step == 1))
            if job.due(step, config.checkpoint.every_steps) or step == 1 or word & stop.SAVE:
                job.save(step, word)

        if ledger.pending is not None:
            _, last, _ = ledger.exchange(_counts([]), 0)
            assert last is not None
            _write(record, last)
            job.judge(last, nonfinite)
            record.scores(steps, job.hold_out())
        return job.finish()


def _counts(micro_batches: list[Batch]) -> torch.Tensor:
    """What this rank's micro-batches count, summed: known from the masks, before any forward."""
    return sum((batch.counts() for batch in micro_batches), torch.zeros(len(COUNT_KINDS), dtype=torch.float64))


def _write(record: Recorder, report: Report) -> None:
    """Every step's exact loss where parameters are hashed, else the steps that are due."""
    if report.parameter_hash is not None:
        record.step(report.step, report.values(), {"parameter_hash": report.parameter_hash})
    elif record.due(report.step):
        record.step(report.step, report.values())
