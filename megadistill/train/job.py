"""One attempt at a run: the engine, and everything the loop asks it to do."""

from __future__ import annotations

import shlex
from functools import partial

import torch
from torch import Tensor

from megadistill.core import faults, log
from megadistill.core.dist import World
from megadistill.core.errors import Exit
from megadistill.core.files import write_json
from megadistill.core.together import on_main
from megadistill.core.types import Batch
from megadistill.data.stream import HeldOut
from megadistill.engine import checkpoint
from megadistill.engine.deepspeed import BatchShape, Engine
from megadistill.engine.frozen import spread
from megadistill.kernels.dispatch import implementations
from megadistill.models.compiled import compile_layers
from megadistill.objectives.step import DistillStep
from megadistill.run.build import Parts
from megadistill.run.config import RunConfig
from megadistill.run.directory import RunDirectory
from megadistill.run.quarantine import Quarantine
from megadistill.train import held_out, rehearsal, stop
from megadistill.train.accumulate import accumulate
from megadistill.train.checkpoints import Checkpoints, layout
from megadistill.train.deadline import Deadline, slurm_end
from megadistill.train.health import Health, RollBack, give_up
from megadistill.train.ledger import Report
from megadistill.train.predecessors import look_back, refuse_different, refuse_to_continue
from megadistill.train.rows import RowLog
from megadistill.train.stragglers import Stopwatch, Stragglers
from megadistill.train.watchdog import Watchdog


class Job:
    """The parts at work. Its methods are called on every rank alike."""

    def __init__(
        self,
        config: RunConfig,
        parts: Parts,
        held_out_rows: HeldOut,
        directory: RunDirectory,
        world: World,
        device: torch.device,
    ) -> None:
        self.config, self.parts, self.directory = config, parts, directory
        self.world, self.device = world, device
        self.held_out = held_out_rows
        self.step = DistillStep(parts.student, config.objectives, parts.losses)
        self.num_parameters = sum(p.numel() for p in parts.student.parameters())  # ZeRO-3 leaves empty ones
        self.engine = wrap(config, parts, device, self.step)
        teacher = parts.teacher.identity() if parts.teacher is not None else None
        refuse_different(teacher)
        on_main("look at the run", partial(refuse_to_continue, directory, config.steps, layout(config, world), teacher))
        self.attempt = directory.claim()
        log.setup(world.rank, directory.log_file(world.rank))  # not before: a start that is refused changes nothing
        on_main("look at the attempts before", partial(look_back, directory, self.attempt, config))
        spread_teacher(parts, device, world)
        self.health = Health(config.train)
        self.checkpoints = Checkpoints(config, parts, self.engine, self.health, directory, self.attempt, world, teacher)
        limits = (config.train.hang_seconds, config.train.timeout_seconds)
        self.watchdog = Watchdog(directory.path, self.attempt, world.rank, *limits)
        self.deadline = Deadline(slurm_end() if world.is_main else None)
        self.quarantine = Quarantine(directory, (parts.stream.part, held_out_rows.part))
        self.stopwatch, self.stragglers = Stopwatch(device), Stragglers()
        self.row_log = RowLog(directory.path, self.attempt, world.rank) if config.log.rows else None
        self.checked_gradients = False
        self.scored: tuple[int, float | None] = (0, None)
        """The newest step that was held out, and the student's loss there."""
        if world.is_main:
            write_json(directory.deepspeed, self.engine.deepspeed_config)

    # ------------------------------------------------------------------ steps

    def accumulate(self, step: int, micro_batches: list[Batch], counts: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """One global batch's gradient (see `accumulate`); the first one is checked to be the same on all ranks."""
        result = accumulate(
            self.engine,
            self.parts.teacher,
            micro_batches,
            counts,
            step=step,
            seed=self.config.seed,
            check_ranks=not self.checked_gradients,
            stopwatch=self.stopwatch,
            watch=self.due(step, self.config.log.every_steps),
            share_gradients=self.due(step, self.config.log.gradient_shares_every_steps),
        )
        self.checked_gradients = True
        return result

    def after_step(self, step: int, micro_batches: list[Batch]) -> None:
        """Write down what was trained on, if asked to, and let a moving teacher move."""
        if self.row_log is not None:
            self.row_log.write(step, micro_batches)
        if self.parts.teacher is not None:
            assert self.config.teacher is not None
            if self.config.teacher.patience:
                self.watchdog.enter("teacher", step, self.config.teacher.patience)
            self.parts.teacher.after_step(step, self.parts.student)

    def rehearsed(self, micro_batches: list[Batch]) -> None:
        """Compare the first step with the plan."""
        if not self.world.is_main:
            return
        if found := rehearsal.compare(self.config, self.world.size, self.device, micro_batches):
            self.directory.journal("rehearsal", step=1, **found)
            self.say(rehearsal.line(found) or f"memory is not compared with the plan: {found['no_estimate']}")

    def wish(self) -> int:
        """What this rank wants before the next step: bits of `stop.BITS`."""
        if why := self.deadline.reason(self.watchdog.longest_step, self.checkpoints.longest_save):
            stop.request(why)  # while there is still time to save
        unsaved = stop.UNSAVED if self.checkpoints.publisher.failed else 0
        return stop.word(self.directory.control, self.world.is_main) | unsaved

    def obey(self, word: int, step: int) -> Exit | None:
        """Do what any rank has wished before `step`; an exit code ends the attempt.

        Raises:
            RollBack: somebody asked for it.
            StaleAttempt: the run is another attempt's now, and so are the files in `control/`.
            whatever kept a checkpoint from being written.
        """
        if word:
            self._still_ours()
        if word & (stop.UNSAVED | stop.ROLLBACK):  # a save under way takes the oldest checkpoint away when it is done
            self.checkpoints.wait()
        if word & stop.ROLLBACK:
            self._roll_back_as_asked(step - 1)
        return self._leave(step - 1) if word & stop.STOP else None

    def due(self, step: int, every: int | None) -> bool:
        return every is not None and step % every == 0

    def parameter_hash(self, step: int) -> str | None:
        return self.engine.parameter_hash() if self.due(step, self.config.log.hash_every_steps) else None

    def judge(self, report: Report) -> None:
        """Whether a step went well, and whether a rank is slow.

        Raises:
            RollBack: too many steps in a row did not.
            Diverged: and the run has gone back often enough.
        """
        for rank, times in self.stragglers.look(report.forward_seconds):
            self.say(f"rank {rank} is slow: its forward passes take {times:.1f} times the median")
            self.directory.journal("straggler", step=report.step, rank=rank, times_median=round(times, 2))
        try:
            wrong = self.health.judge(report)
        except RollBack as rollback:
            self._journal_bad(report, rollback.wrong)
            self._roll_back(rollback)
            raise
        if wrong:
            self._journal_bad(report, wrong)

    def _journal_bad(self, report: Report, wrong: str) -> None:
        self.directory.journal(wrong, step=report.step, applied=report.applied, loss=repr(report.loss))

    # ------------------------------------------------------------------ scores

    def hold_out(self, step: int, rehearsal: bool = False) -> dict[str, float]:
        """Held-out scores of the student; a rehearsal takes two micro-batches per rank."""
        size = self.config.batch.rows_per_pass
        faults.place("evaluate", self.world.rank)
        rows = 2 * size * self.world.size if rehearsal else self.config.evaluate.rows
        batches = self.held_out.batches(size, self.config.seed, self.world, max_rows=rows)
        teacher = self.parts.teacher
        if teacher is not None and not teacher.models:  # kept answers know nothing of rows that are not trained on
            teacher = None
        scores = held_out.evaluate(self.engine, teacher, batches, self.device)
        if rehearsal:
            return {f"rehearsal/{name.removeprefix('heldout/')}": value for name, value in scores.items()}
        self.scored = (step, scores["heldout/loss"])
        return scores

    # ------------------------------------------------------------------ checkpoints

    def restore(self) -> int:
        """Load the newest checkpoint that verifies; returns its step, 0 when there is none."""
        found = self.checkpoints.restore()
        step = 0 if found is None else found.step
        self.directory.resumed(None if found is None else (found.step, found.attempt))
        self.quarantine.recall()
        if self.world.is_main:
            checkpoint.sweep(self.directory.checkpoints, self.attempt)
        self.directory.journal(
            "start" if found is None else "resume",
            step=step,
            checkpoint=None if found is None else found.path.name,
            world_size=self.world.size,
            accumulation=self.parts.accumulation,
            ops=implementations(self.device),
            teacher=self.checkpoints.teacher_identity,
            likeness=self.parts.likeness if found is None else None,
            num_parameters=self.num_parameters,
            changed=self.directory.changed,
            not_bitwise=self.directory.not_bitwise,
        )
        self.directory.status("running", step=step)
        self._greet(found, step)
        return step

    def save(self, step: int, word: int = 0) -> None:
        """Commit a checkpoint of `step`, or begin to."""
        if self.world.is_main:
            stop.done(self.directory.control, word)  # a file that asked for this save must not ask again
        scored, loss = self.scored
        self.quarantine.agree(step)
        self.checkpoints.save(step, loss if scored == step else None)
        self.directory.status("running", step=step)

    # ------------------------------------------------------------------ endings

    def _leave(self, step: int) -> Exit:
        """Stop early, after a checkpoint."""
        why = stop.reason() or "control/STOP"
        self.save(step, stop.STOP)
        self.checkpoints.wait()
        self.directory.journal("signal", step=step, signals=why)
        self.directory.status("stopped", step=step, reason=why)
        self.say(f"stopped at step {step} ({why}); the same command continues it")
        return Exit.STOPPED

    def finish(self) -> Exit:
        """The last checkpoint, and the end; after it only the copy is waited for."""
        steps = self.config.steps
        self.save(steps)
        self.checkpoints.wait()
        self.directory.journal("end", step=steps)
        self.directory.status("done", step=steps)
        self.watchdog.enter("copy", steps)
        self.checkpoints.wait_for_copies()
        run, more = self.directory.path, [*self.config.train.more_steps, self.config.train.steps]
        again = f"train.more_steps={more}".replace(", ", ",")
        on = ["train", self.directory.config, again]  # quoted: zsh would look for files of such a name
        for words in (on, ["evaluate", run], ["export", run, "--to", "hf"], ["report", run]):
            self.say(f"next: megadistill {shlex.join(map(str, words))}")
        return Exit.DONE

    def close(self) -> None:
        """Let go of what DeepSpeed holds, so that another attempt can be made in this process."""
        self.engine.close()

    def save_through(self) -> None:
        """See the last save through, whatever comes of it."""
        try:
            self.checkpoints.wait()
        except Exception as error:
            log.get().error(f"the last save failed: {error}")

    def _roll_back(self, rollback: RollBack) -> None:
        """Journal what is undone and left out; the next attempt reads it there.

        Raises:
            Diverged: the run has gone back by itself often enough, or cannot go back so far.
            StaleAttempt: it is not this attempt's to go back with.
        """
        self._still_ours()
        self.save_through()
        if rollback.wrong:
            events = on_main("read the journal", self.directory.events)
            give_up(rollback, events, self.config.train.max_rollbacks, self.checkpoints.oldest())
        skips = self.parts.stream.window(rollback.first - 1, rollback.last)
        self.directory.journal(
            "rollback",
            step=rollback.last,
            first=rollback.first,
            skips=skips,
            why=rollback.why,
            asked_for=not rollback.wrong,
        )
        self.say(f"{rollback}; rows {skips[0]} to {skips[1] - 1} of the order are left out from here on")

    def _roll_back_as_asked(self, step: int) -> None:
        control = self.directory.control
        since = self.checkpoints.last_saved + 1
        first = on_main("read control/ROLLBACK", partial(stop.first_to_undo, control, since))
        oldest = self.checkpoints.oldest()
        rollback = RollBack(int(first), step, "control/ROLLBACK") if oldest < first <= step else None
        if rollback is not None:
            self._roll_back(rollback)
        on_main("obey control/ROLLBACK", partial(stop.done, control, stop.ROLLBACK))
        if rollback is not None:
            raise rollback
        self.say(
            f"control/ROLLBACK is ignored: steps {oldest + 1} to {step} can be undone, the oldest checkpoint being of "
            f"step {oldest}"
        )

    def _still_ours(self) -> None:
        on_main("see whose the run is", self.directory.still_ours)

    def say(self, text: str) -> None:
        """Log on this rank; the console shows rank 0's."""
        log.get().info(text)

    def _greet(self, found: checkpoint.Found | None, step: int) -> None:
        status = shlex.join(["megadistill", "status", str(self.directory.path)])
        self.say(f"attempt {self.attempt}; from another shell: {status}")
        stream, micro, ranks = self.parts.stream, self.config.batch.rows_per_pass, self.world.size
        rows = stream.sizes.span(step)[1]
        what = f"{rows * self.config.sequence_length:,} tokens" if self.config.words else f"{rows:,} images"
        self.say(
            f"accumulation {rows // (micro * ranks)} = {rows} / ({micro} x {ranks} ranks); "
            f"{what} a step, {stream.rows_per_epoch:,} rows an epoch"
        )
        if found is not None and step == self.config.steps:
            self.say(f"nothing is left to do: the run is at its end, step {step}")
        elif found is not None:
            self.say(f"continuing at step {step} from {found.path}")
        elif self.parts.likeness is not None:
            like = self.parts.likeness
            self.say(f"at the start: KL {like['kl']:.3f} to the teacher, top-1 agreement {like['agreement_top1']:.1%}")
            if 1 in like["agreement"]:  # else only the last layer's is known
                by_layer = " ".join(f"{share:.0%}" for share in like["agreement"].values())
                self.say(f"after each layer: agreement {by_layer} with the teacher's of its depth")
        for reason in self.directory.not_bitwise:
            self.say(f"not bitwise: {reason}")


def wrap(config: RunConfig, parts: Parts, device: torch.device, step: DistillStep) -> Engine:
    """The student and its objectives under DeepSpeed; a collective."""
    if config.engine.compile:
        compile_layers(parts.student)
    shape = BatchShape(config.batch.global_size, config.batch.rows_per_pass, parts.accumulation)
    return Engine(config.engine, config.optimizer, step, shape, device)


def spread_teacher(parts: Parts, device: torch.device, world: World) -> None:
    """Put a teacher that is not to be whole on every rank where it shall be; a collective."""
    for model in parts.teacher.models if parts.teacher is not None else ():
        if model.placement != "replicated":
            spread(model, model.placement == "offloaded", device, world)
