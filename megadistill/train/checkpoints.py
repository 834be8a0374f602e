"""How a run's state goes to disk, and comes back."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from megadistill.core import faults, log
from megadistill.core.dist import World
from megadistill.core.together import on_main
from megadistill.engine import checkpoint, elastic
from megadistill.engine.deepspeed import Engine
from megadistill.engine.publisher import Publisher
from megadistill.models.loading import save_pretrained
from megadistill.run.build import Parts
from megadistill.run.config import RunConfig
from megadistill.run.directory import RunDirectory
from megadistill.train.health import Health, undone_from
from megadistill.train.mirror import Mirror


class Checkpoints:
    """Saves and restores engine, moving teacher and health together. Its methods are called on every rank alike."""

    def __init__(
        self,
        config: RunConfig,
        parts: Parts,
        engine: Engine,
        health: Health,
        directory: RunDirectory,
        attempt: int,
        world: World,
        teacher_identity: dict[str, Any] | None,
    ) -> None:
        self.config, self.parts, self.engine, self.health = config, parts, engine, health
        self.directory, self.attempt, self.world = directory, attempt, world
        self.teacher_identity = teacher_identity
        self.publisher = Publisher(config.checkpoint.asynchronous, config.train.timeout_seconds)
        self.last_saved = 0
        """The step of the newest one, which may still be on its way to the disk."""
        self.longest_save = 0.0
        """Seconds, until it was committed."""
        self._copied = 0.0
        url = config.checkpoint.copy_to
        self.mirror = Mirror(f"{url.rstrip('/')}/{config.name}", directory, self._uncopied) if url else None

    def restore(self) -> checkpoint.Found | None:
        """Load the newest checkpoint that verifies and that no rollback has undone; None: there is none."""
        passed_over: list[str] = []
        # one view of a shared disk, for all ranks
        history, undone = on_main("read the attempts", self._past)
        found = checkpoint.newest(self.directory.checkpoints, history, passed_over.append, undone)
        for reason in passed_over:
            log.get().warning(reason)
            self.directory.journal("fallback", reason=reason)
        faults.place("restore.verified", self.world.rank)
        if found is None:
            return None
        self._load(found)
        if self.parts.teacher is not None:
            self.parts.teacher.load(found.path / "teacher")
        self.health.restore(found.manifest["facts"]["health"])
        self.last_saved = found.step
        self._mirror(found.path)
        return found

    def save(self, step: int, heldout_loss: float | None) -> None:
        """Commit a checkpoint of `step`, unless this attempt stands on it already; asynchronously, if the config says
        so (`wait` then tells when it is there).

        Args:
            heldout_loss: of the student at this step; None: not measured.
        """
        if step == self.last_saved:
            return
        self.wait()
        started = time.perf_counter()
        keep = self.config.checkpoint

        def committed(path: Path) -> None:
            seconds = time.perf_counter() - started
            stopped = self._copied - started if keep.asynchronous else seconds
            self.longest_save = max(self.longest_save, seconds)
            times = {"seconds": round(seconds, 3), "training_stopped_seconds": round(stopped, 3)}
            self.directory.journal("save", step=step, path=path.name, **times)
            self._mirror(path)

        checkpoint.save(
            self.directory.checkpoints,
            step,
            self.attempt,
            self._snapshot,
            self._facts(heldout_loss),
            self.directory.still_ours,
            checkpoint.Keep(keep.keep, keep.keep_every_steps, keep.keep_best),
            log.get().info,
            on_main("read the attempts", self.directory.history),
            self.publisher,
            committed,
        )
        self.last_saved = step

    def wait(self) -> None:
        """Until the last save is committed.

        Raises:
            what went wrong with it, on every rank.
        """
        self.publisher.wait()

    def wait_for_copies(self) -> None:
        """Until rank 0 has copied the last one to where copies go, or has tried for half the time that a collective
        may take. All ranks stay until then: a launcher may end the others when one has left."""
        if self.mirror is None:
            return
        seconds = self.config.train.timeout_seconds / 2
        if not on_main("wait for the copies", partial(self.mirror.wait, seconds)):
            still = "the same command copies the rest, and waits longer with a larger train.timeout_seconds"
            log.get().warning(f"{self.mirror.url} has not got everything after {seconds:.0f} s; {still}")

    def oldest(self) -> int:
        """How far back the run can go: the step of its oldest checkpoint, 0 while there is none."""
        return on_main("look for the oldest checkpoint", self._oldest)

    def _oldest(self) -> int:
        history, found = self.directory.history(), checkpoint.committed(self.directory.checkpoints)
        return min((step for step, attempt, _ in found if checkpoint.on_line(history, step, attempt)), default=0)

    def _mirror(self, path: Path) -> None:
        if self.mirror is not None and self.world.is_main:
            self.mirror.offer(path)

    def _uncopied(self, why: str) -> None:
        log.get().warning(why)
        self.directory.journal("uncopied", why=why)

    def _past(self) -> tuple[checkpoint.History, float]:
        return self.directory.history(), undone_from(self.directory.events())

    def _load(self, found: checkpoint.Found) -> None:
        there, here = found.manifest["facts"]["layout"], layout(self.config, self.world)
        # at stage 0 nothing is sharded, so it does not matter how many ranks there are
        if there == here or self.config.engine.zero_stage == 0:
            self.engine.load(found.path)
            return
        universal = self.directory.checkpoints / f".tmp-universal-{found.path.name}"
        log.get().info(f"converting {found.path.name} from {there} to {here}")
        frozen = elastic.frozen_names(self.engine.module)
        on_main("convert the checkpoint", partial(elastic.convert, found.path / "deepspeed", universal, frozen))
        try:
            self.engine.adopt(universal, found.manifest["facts"]["updates"])
        finally:
            on_main("clear away the converted checkpoint", partial(shutil.rmtree, universal, ignore_errors=True))

    def _facts(self, heldout_loss: float | None) -> dict[str, Any]:
        """What a checkpoint's manifest says of the run that wrote it."""
        return {
            "layout": layout(self.config, self.world),
            "updates": self.engine.updates(),
            "data": self.parts.stream.fingerprint,
            "tokenizer": self.parts.tokenizer,
            "teacher": self.teacher_identity,
            "health": self.health.state(),
            "heldout_loss": heldout_loss,
        }

    def _snapshot(self, folder: Path) -> Callable[[], None]:
        write_engine = self.engine.snapshot(folder)
        weights = {
            name.removeprefix("student."): value
            for name, value in self.engine.full_weights()
            if name.startswith("student.") and self.world.is_main
        }
        if self.world.is_main and self.parts.teacher is not None:
            self.parts.teacher.save(folder / "teacher")  # at once: it moves on with the next step

        def write() -> None:
            write_engine()
            if self.world.is_main:
                save_pretrained(self.parts.student, folder / "student", weights)

        self._copied = time.perf_counter()
        return write


def layout(config: RunConfig, world: World) -> dict[str, Any]:
    """How a checkpoint of this run is cut: what must be equal for it to be loaded as it is."""
    engine, optimizer = config.engine, config.optimizer.kind
    other = {} if optimizer == "adamw" else {"optimizer": optimizer}
    return {"ranks": world.size, "zero_stage": engine.zero_stage, "precision": engine.precision, **other}
