"""The training loop. Everything megadistill trains, it trains here."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path

import torch

from megadistill.core import dist, log
from megadistill.core.dist import World
from megadistill.core.errors import Diverged, Exit, StaleAttempt, UserError
from megadistill.core.together import on_main
from megadistill.core.types import COUNT_KINDS, Batch
from megadistill.engine.deepspeed import engine_fits
from megadistill.run.build import Parts, build, held_out
from megadistill.run.config import RunConfig, load
from megadistill.run.directory import RunDirectory
from megadistill.run.trained import teacher_of
from megadistill.teachers import apart
from megadistill.train import memory, micro_size, stop
from megadistill.train.fallen import PeerFailed, blame, is_broken_connection, leave_word
from megadistill.train.health import RollBack, skipped
from megadistill.train.job import Job
from megadistill.train.ledger import Done, Ledger, Report
from megadistill.train.record import Recorder


def run(path: Path, assignments: list[str], fresh: bool) -> int:
    """Start or continue the run that a config file describes; returns the exit code."""
    config = load(path, assignments)
    if config.train.deterministic:
        _be_deterministic()
    world = dist.from_environment()
    if config.teacher_ranks:
        return _apart(config, world, fresh)
    device = dist.connect(world, config.train.timeout_seconds)
    try:
        return train(config, world, device, fresh)
    finally:
        dist.disconnect()


def _apart(config: RunConfig, world: World, fresh: bool) -> int:
    """The last ranks are the teacher's; to the others they do not exist."""
    students = config.students(world.size)
    store, patience = dist.meet(world, config.train.timeout_seconds), config.train.timeout_seconds
    if world.rank >= students:
        teacher = teacher_of(config)
        assert teacher is not None
        model = teacher.build(dist.device_of(world)).models[0]
        return int(apart.serve(model, store, world, students, patience, stop.requested))
    apart.join(apart.Link(store, world.rank, patience, lambda: stop.request("a signal to a teacher's rank")))
    ours = World(world.rank, students, world.local_rank)
    device = dist.connect(ours, patience, torch.distributed.PrefixStore("students", store))
    code = int(Exit.CRASH)
    try:
        code = int(train(config, ours, device, fresh))
        return code
    except UserError as error:
        code = int(error.exit_code)
        raise
    finally:
        apart.leave(code)
        dist.disconnect()


def train(config: RunConfig, world: World, device: torch.device, fresh: bool = False) -> Exit:
    """Attempts at the run, until one comes to its end: a rollback begins another one.

    Returns:
        DONE, or STOPPED: a checkpoint was written because somebody asked to stop.

    Raises:
        UserError: a mistake in what was given; nothing was written if it shows before the first step.
        Diverged: the loss stayed non-finite.
    """
    while True:
        try:
            return _attempt(config, world, device, fresh)
        except RollBack:
            fresh = False
        gc.collect()  # the exception held on to the old engine


def _attempt(config: RunConfig, world: World, device: torch.device, fresh: bool) -> Exit:
    """Build, restore, loop."""
    log.setup(world.rank)
    log.get().info(f"{config.run_directory}: loading models and data, on {world.size} x {device.type}")
    engine_fits(config.engine, device)
    config = micro_size.settled(config, world, device, fresh)
    with memory.explained(config, world, device):
        parts = build(config, world, device)  # most of a user's mistakes come out here, before anything is written
    held_out_rows = held_out(config)
    held_out_rows.batches(config.batch.rows_per_pass, config.seed, world)  # refuses to be too few
    directory = RunDirectory.open(config, fresh, world)
    directory.data_is(parts.stream.fingerprint)
    parts.stream.leave_out(on_main("read the journal", lambda: skipped(directory.events())))
    job: Job | None = None
    try:
        with memory.explained(config, world, device):
            job = Job(config, parts, held_out_rows, directory, world, device)
        with job.watchdog, memory.explained(config, world, device, job.watchdog):
            return _loop(config, parts, directory, job, world)
    except RollBack:
        assert job is not None
        job.close()
        raise
    except BaseException as error:
        if directory.attempt is None:
            raise  # a start that is refused changes nothing
        told: BaseException = error
        if world.size > 1 and is_broken_connection(error):
            told = blame(directory.path, directory.attempt, directory.log_file(world.rank))
        _fail(directory, directory.attempt, world.rank, job, told)
        if told is error:
            raise
        raise told from error


def _fail(directory: RunDirectory, attempt: int, rank: int, job: Job | None, error: BaseException) -> None:
    """Leave word of how the attempt ended; the exception goes on.

    Args:
        job: None: it ended before there was one.
    """
    leave_word(directory.path, attempt, rank, "the start" if job is None else job.watchdog.doing, error)
    if job is not None and isinstance(error, UserError) and not isinstance(error, PeerFailed):
        job.save_through()  # on all ranks
    text = f"{type(error).__name__}: {error}"
    log.get().error(text, exc_info=None if isinstance(error, UserError) else error)
    if isinstance(error, StaleAttempt):
        return  # the run is another attempt's now
    state = "diverged" if isinstance(error, Diverged) else "failed"
    directory.journal("end", state=state, error=text)
    directory.status(state, error=text)


def _loop(config: RunConfig, parts: Parts, directory: RunDirectory, job: Job, world: World) -> Exit:
    job.watchdog.enter("restore", 0)
    first, steps = job.restore() + 1, config.steps
    ledger = Ledger([o.label for o in config.objectives], config.weights_at, job.step.count_of)

    with Recorder(directory, config.log, job.attempt, world.is_main, total_steps=steps, start_step=first - 1) as record:
        started = time.perf_counter()
        ahead = parts.stream.prefetching(first - 1, steps, pinned=job.engine.device.type == "cuda")
        for step, micro_batches in enumerate(ahead, first):
            waited = time.perf_counter() - started
            job.watchdog.enter("step", step)
            counts, before, word = ledger.exchange(_counts(micro_batches), job.wish())
            _conclude(before, record, job)
            if (ending := job.obey(word, step)) is not None:
                return ending

            sums, seen = job.accumulate(step, micro_batches, counts)
            factor = config.learning_rate_factor(step)
            update = job.engine.step(factor)
            job.after_step(step, micro_batches)

            rate, seconds = config.optimizer.learning_rate * factor, time.perf_counter() - started
            forward, hashed = job.stopwatch.seconds, job.parameter_hash(step)
            ledger.pending = Done(step, counts, sums, seen, update, seconds, waited, forward, rate, hashed)
            # the first real step is the rehearsal: what would fail at hour six fails now
            scores = job.due(step, config.evaluate.every_steps)
            saves = job.due(step, config.checkpoint.every_steps) or step == 1 or word & stop.SAVE
            if scores or saves or step == steps:  # a step is judged before anything is built on it
                _conclude(ledger.exchange(_counts([]), 0)[1], record, job)
                job.watchdog.enter("evaluate and save", step)
            if step == 1:
                job.rehearsed(micro_batches)
                record.scores(step, job.hold_out(step, rehearsal=True))
            if scores or step == steps:
                record.scores(step, job.hold_out(step))
            if saves:
                job.save(step, word)
            started = time.perf_counter()  # waiting for the next batch belongs to the next step
        return job.finish()


def _counts(micro_batches: list[Batch]) -> torch.Tensor:
    """What this rank's micro-batches count, summed: known from the masks, before any forward."""
    return sum((batch.counts() for batch in micro_batches), torch.zeros(len(COUNT_KINDS), dtype=torch.float64))


def _conclude(report: Report | None, record: Recorder, job: Job) -> None:
    """Write a step down (where parameters are hashed every one, else those that are due or looked at), and judge it."""
    if report is None:
        return
    if report.parameter_hash is not None:
        record.step(report.step, report.values(), {"parameter_hash": report.parameter_hash})
    elif record.due(report.step) or report.seen:
        record.step(report.step, report.values())
    job.judge(report)


def _be_deterministic() -> None:
    """On a GPU too; before CUDA starts, which reads the workspace setting then."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
