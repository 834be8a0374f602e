"""One attempt at a run: the engine, and everything the loop asks it to do."""

from __future__ import annotations

import json
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megadistill.core import faults, log
from megadistill.core.dist import World
from megadistill.core.errors import Diverged, Exit, StaleAttempt, UserError
from megadistill.core.files import write_json
from megadistill.core.together import on_main
from megadistill.core.types import Batch
from megadistill.data.stream import HeldOut
from megadistill.engine import checkpoint, elastic
from megadistill.engine.deepspeed import BatchShape, Engine
from megadistill.kernels.dispatch import implementations
from megadistill.models.loading import save_pretrained
from megadistill.run.build import Parts
from megadistill.run.config import RunConfig
from megadistill.run.directory import RunDirectory
from megadistill.run.left_out import LeftOut
from megadistill.run.restarts import refuse_fruitless, refuse_live, restarted_by_scheduler
from megadistill.train import held_out, stop
from megadistill.train.accumulate import accumulate
from megadistill.train.deadline import Deadline, slurm_end
from megadistill.train.ledger import Report
from megadistill.train.rows import RowLog
from megadistill.train.step import DistillStep
from megadistill.train.watchdog import Watchdog, hung_file, hung_ranks


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
        shape = BatchShape(config.batch.global_size, config.batch.micro_size, parts.accumulation)
        self.engine = Engine(config.engine, config.optimizer, self.step, shape, device)
        self.teacher_identity = parts.teacher.identity() if parts.teacher is not None else None
        self._refuse_other_layout(on_main("read the newest checkpoint", self._newest_facts))
        on_main("look for a live attempt", self._refuse_live)
        self.attempt = directory.claim()
        on_main("look at the attempts before", self._look_back)
        limits = (config.train.hang_seconds, config.train.timeout_seconds)
        self.watchdog = Watchdog(directory.path, self.attempt, world.rank, *limits)
        self.deadline = Deadline(slurm_end() if world.is_main else None)
        self.left_out = LeftOut(directory, parts.stream, held_out_rows.part)
        self.row_log = RowLog(directory.path, self.attempt, world.rank) if config.log.rows else None
        self.longest_save = 0.0
        self.checked_gradients = False
        self.nonfinite_in_a_row = 0
        self.last_saved = 0
        if world.is_main:
            write_json(directory.deepspeed, self.engine.deepspeed_config)

    # ------------------------------------------------------------------ steps

    def accumulate(self, step: int, micro_batches: list[Batch], counts: Tensor) -> tuple[Tensor, Tensor]:
        """One global batch's gradient (see `accumulate`); the first one is checked to be the same on all ranks."""
        result = accumulate(
            self.engine,
            self.parts.teacher,
            micro_batches,
            counts,
            step=step,
            seed=self.config.seed,
            check_ranks=not self.checked_gradients,
            ask_teacher=self.due(step, self.config.log.every_steps),
        )
        self.checked_gradients = True
        return result

    def after_step(self, step: int, micro_batches: list[Batch]) -> None:
        """Write down what was trained on, if asked to, and let a moving teacher move."""
        if self.row_log is not None:
            self.row_log.write(step, micro_batches)
        if self.parts.teacher is not None:
            self.parts.teacher.after_step(step, self.parts.student)

    def mind_the_deadline(self) -> None:
        """Ask for a stop while there is still time to save."""
        if why := self.deadline.reason(self.watchdog.longest_step, self.longest_save):
            stop.request(why)

    def due(self, step: int, every: int | None) -> bool:
        return every is not None and step % every == 0

    def parameter_hash(self, step: int) -> str | None:
        return self.engine.parameter_hash() if self.due(step, self.config.log.hash_every_steps) else None

    def judge(self, report: Report) -> None:
        """Count non-finite steps in a row.

        Raises:
            Diverged: too many of them, or one whose update was applied: the parameters are lost.
        """
        if report.finite and report.applied:
            self.nonfinite_in_a_row = 0
            return
        self.nonfinite_in_a_row += 1
        self.directory.journal("nonfinite", step=report.step, applied=report.applied, loss=repr(report.loss))
        if self.nonfinite_in_a_row >= self.config.train.max_nonfinite_steps or report.applied:
            raise Diverged(
                f"step {report.step}: the loss is {report.loss}",
                f"{self.nonfinite_in_a_row} non-finite step(s) in a row; the checkpoints before it are intact",
                "lower optimizer.learning_rate or optimizer.gradient_clipping, or look at the data of that step",
            )

    # ------------------------------------------------------------------ scores

    def hold_out(self, rehearsal: bool = False) -> dict[str, float]:
        """Held-out scores of the student; a rehearsal takes two micro-batches per rank."""
        size = self.config.batch.micro_size
        faults.place("evaluate", self.world.rank)
        rows = 2 * size * self.world.size if rehearsal else self.config.evaluate.rows
        batches = self.held_out.batches(size, self.config.seed, self.world, max_rows=rows)
        scores = held_out.evaluate(self.engine, self.parts.teacher, batches, self.device)
        if rehearsal:
            return {f"rehearsal/{name.removeprefix('heldout/')}": value for name, value in scores.items()}
        return scores

    # ------------------------------------------------------------------ checkpoints

    def restore(self) -> int:
        """Load the newest checkpoint that verifies; returns its step, 0 when there is none."""
        passed_over: list[str] = []
        history = on_main("read the attempts", self.directory.history)  # one view of a shared disk, for all ranks
        found = checkpoint.newest(self.directory.checkpoints, history, passed_over.append)
        for reason in passed_over:
            log.get().warning(reason)
            self.directory.journal("fallback", reason=reason)
        faults.place("restore.verified", self.world.rank)
        if found is not None:
            if found.step > self.config.train.steps:
                raise UserError(
                    f"the run is at step {found.step} already, and train.steps is {self.config.train.steps}",
                    f"{found.path}",
                    "give a larger train.steps, or this run another `name`",
                )
            self._load(found)
            if self.parts.teacher is not None:
                self.parts.teacher.load(found.path / "teacher")
            self.last_saved = found.step
        step = 0 if found is None else found.step
        self.directory.resumed(None if found is None else (found.step, found.attempt))
        self.left_out.recall()
        if self.world.is_main:
            checkpoint.sweep(self.directory.checkpoints, self.attempt)
        self.directory.journal(
            "start" if found is None else "resume",
            step=step,
            checkpoint=None if found is None else found.path.name,
            world_size=self.world.size,
            accumulation=self.parts.accumulation,
            ops=implementations(self.device),
            teacher=self.teacher_identity,
            likeness=self.parts.likeness if found is None else None,
            num_parameters=self.num_parameters,
            changed=self.directory.changed,
            not_bitwise=self.directory.not_bitwise,
        )
        self.directory.status("running", step=step)
        self._greet(found, step)
        return step

    def _load(self, found: checkpoint.Found) -> None:
        there, here = found.manifest["facts"]["layout"], self._layout()
        if there == here:
            self.engine.load(found.path)
            return
        if self.config.engine.zero_stage == 0:  # not sharded, so it does not matter how many ranks there are
            self.engine.load(found.path)
        else:
            universal = self.directory.checkpoints / f".tmp-universal-{found.path.name}"
            self.say(f"converting {found.path.name} from {there} to {here}")
            on_main("convert the checkpoint", partial(elastic.convert, found.path / "deepspeed", universal))
            try:
                self.engine.adopt(universal, found.manifest["facts"]["updates"])
            finally:
                on_main("clear away the converted checkpoint", partial(shutil.rmtree, universal, ignore_errors=True))

    def save(self, step: int, word: int = 0) -> None:
        """Commit a checkpoint of `step`, unless this attempt stands on it already."""
        if self.world.is_main:
            stop.done(self.directory.control, word)  # a file that asked for this save must not ask again
        if step == self.last_saved:
            return
        started = time.perf_counter()
        keep = self.config.checkpoint
        self.left_out.agree(step)
        path = checkpoint.save(
            self.directory.checkpoints,
            step,
            self.attempt,
            self._write,
            self._facts(),
            self.directory.still_ours,
            keep.keep,
            keep.keep_every_steps,
            self.say,
            on_main("read the attempts", self.directory.history),
        )
        self.last_saved = step
        seconds = time.perf_counter() - started
        self.longest_save = max(self.longest_save, seconds)
        self.directory.journal("save", step=step, path=path.name, seconds=round(seconds, 3))
        self.directory.status("running", step=step, checkpoint=path.name)

    def _facts(self) -> dict[str, Any]:
        """What a checkpoint's manifest says of the run that wrote it."""
        return {
            "layout": self._layout(),
            "updates": self.engine.updates(),
            "data": self.parts.stream.fingerprint,
            "tokenizer": self.parts.stream.part.tokenizer,
            "teacher": self.teacher_identity,
        }

    def _layout(self) -> dict[str, Any]:
        engine = self.config.engine
        return {"ranks": self.world.size, "zero_stage": engine.zero_stage, "precision": engine.precision}

    def _newest_facts(self) -> dict[str, Any] | None:
        """What the newest checkpoint says it was written with; not verified yet."""
        for _, _, path in checkpoint.committed(self.directory.checkpoints):
            try:
                return json.loads((path / checkpoint.MANIFEST).read_text(encoding="utf-8"))["facts"]
            except (OSError, ValueError, KeyError):
                continue
        return None

    def _refuse_live(self) -> None:
        if not restarted_by_scheduler():  # a scheduler may restart what it has lost sight of; then the fence decides
            refuse_live(self.directory.owner())

    def _look_back(self) -> None:
        """Say which attempt hung; refuse a restart that would be one too many (`run/restarts.py`)."""
        hung = hung_ranks(self.directory.path, self.attempt - 1)
        if hung:
            stacks = hung_file(self.directory.path, self.attempt - 1, hung[0])
            self.say(f"attempt {self.attempt - 1} hung on rank(s) {', '.join(map(str, hung))}; stacks in {stacks}")
            self.directory.journal("hang", hung_attempt=self.attempt - 1, ranks=hung, stacks=stacks.name)
        if restarted_by_scheduler():
            refuse_fruitless(self.directory.events(), self.attempt, self.config.train.max_fruitless_restarts)

    def _refuse_other_layout(self, facts: dict[str, Any] | None) -> None:
        """Before the run is claimed: a start that cannot continue it must not fence off one that does."""
        if facts is None:
            return
        there, here = facts["layout"], self._layout()
        if there["zero_stage"] != here["zero_stage"] and 0 in (there["zero_stage"], here["zero_stage"]):
            raise UserError(
                "a checkpoint of ZeRO stage 0 cannot be continued at another stage, nor one of another at stage 0",
                f"{there} in the checkpoint / {here} here",
                f"set engine.zero_stage to {there['zero_stage']}",
            )
        theirs, ours = facts["teacher"], self.teacher_identity
        if theirs != ours and theirs and ours and theirs.get("sha256") != ours.get("sha256"):
            raise UserError(
                "the teacher is not the one this run has learnt from so far",
                f"{theirs} in the checkpoint / {ours} here",
                "bring back the old teacher, or give this run another `name`",
            )

    def _write(self, folder: Path) -> None:
        self.engine.save(folder)
        weights = {
            name.removeprefix("student."): value
            for name, value in self.engine.full_weights()
            if name.startswith("student.") and self.world.is_main
        }
        if self.world.is_main:
            save_pretrained(self.parts.student, folder / "student", weights)
            if self.parts.teacher is not None:
                self.parts.teacher.save(folder / "teacher")

    def leave(self, step: int) -> Exit:
        """Stop early, after a checkpoint."""
        why = stop.reason() or "control/STOP"
        self.save(step, stop.STOP)
        self.directory.journal("signal", step=step, signals=why)
        self.directory.status("stopped", step=step, reason=why)
        self.say(f"stopped at step {step} ({why}); the same command continues it")
        return Exit.STOPPED

    def finish(self) -> Exit:
        """The last checkpoint, and the end."""
        steps = self.config.train.steps
        self.save(steps)
        self.directory.journal("end", step=steps)
        self.directory.status("done", step=steps)
        run = self.directory.path
        for line in (f"evaluate {run}", f"export {run} --to hf", f"report {run}"):
            self.say(f"next: megadistill {line}")
        return Exit.DONE

    def fail(self, error: BaseException) -> None:
        """Leave word of how the attempt ended; the exception goes on."""
        text = f"{type(error).__name__}: {error}"
        log.get().error(text, exc_info=None if isinstance(error, UserError) else error)
        state = "diverged" if isinstance(error, Diverged) else "stale" if isinstance(error, StaleAttempt) else "failed"
        if state == "stale":
            return  # the run is another attempt's now
        self.directory.journal("end", state=state, error=text)
        self.directory.status(state, error=text)

    def say(self, text: str) -> None:
        """Log on this rank; the console shows rank 0's."""
        log.get().info(text)

    def _greet(self, found: checkpoint.Found | None, step: int) -> None:
        stream, micro, ranks = self.parts.stream, self.config.batch.micro_size, self.world.size
        rows = stream.sizes.span(step)[1]
        self.say(
            f"accumulation {rows // (micro * ranks)} = {rows} / ({micro} x {ranks} ranks); "
            f"{rows * self.config.data.sequence_length:,} tokens a step, {stream.rows_per_epoch:,} rows an epoch"
        )
        if found is not None:
            self.say(f"continuing at step {step} from {found.path}")
        elif self.parts.likeness is not None:
            like = self.parts.likeness
            self.say(f"at the start: KL {like['kl']:.3f} to the teacher, top-1 agreement {like['agreement_top1']:.1%}")
        for reason in self.directory.not_bitwise:
            self.say(f"not bitwise: {reason}")
