"""What a run keeps on disk: where everything is, how it comes into being, who may write to it."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import socket
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from megadistill.core.dist import World
from megadistill.core.errors import StaleAttempt, UserError
from megadistill.core.files import append_line, atomic_write, fsync_directory, read_lines, write_json
from megadistill.core.together import on_main, rank_and_size
from megadistill.run import environment, sameness
from megadistill.run.claims import Claims
from megadistill.run.restarts import refuse_live

if TYPE_CHECKING:
    from megadistill.engine.checkpoint import Origin
    from megadistill.run.config import RunConfig

_START_OVER = "give this run another `name`, or start over with --fresh (which keeps the old run beside it)"
_INSTEAD = {
    "train.steps: ": "to train on, leave train.steps and give train.more_steps=[N]",
    "train.more_steps.": "give the train.more_steps that it has had, further ones behind them",
}
"""What mends a difference, by how its line begins."""
_LET_IT_RUN = "let the newer one run; this one has committed nothing since"


class RunDirectory:
    """The paths of one run, and what this process knows of it after `open` and `claim`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.id = ""
        """Set by `open`; a directory of another id is another run, even at the same path."""
        self.config_hash = ""
        """Set by `open`: what the run is, without what may differ harmlessly."""
        self.changed: list[str] = []
        """Set by `open`: fields that differ harmlessly from those the run had before."""
        self.not_bitwise: list[str] = []
        """Set by `open`: why the run will not go on bit for bit; to be printed and journaled."""
        self.attempt: int | None = None
        """Set by `claim`."""
        self._documents: dict[str, str] = {}

        self.identity = self.path / "run.json"
        self.config = self.path / "config.yaml"
        self.resolved_config = self.path / "config.resolved.yaml"
        self.deepspeed = self.path / "deepspeed.json"
        self.environment = self.path / "environment.json"
        self.command = self.path / "command.txt"
        self.status_file = self.path / "STATUS"
        self.attempts = self.path / "attempts"
        self.journal_file = self.path / "journal.jsonl"
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.logs = self.path / "logs"
        self.checkpoints = self.path / "checkpoints"
        self.evaluation = self.path / "evaluation"
        self.export = self.path / "export"
        self.report = self.path / "report.html"
        self.control = self.path / "control"
        self._claims = Claims(self.attempts)

    def log_file(self, rank: int) -> Path:
        return self.logs / f"rank-{rank:04d}.log"

    # ------------------------------------------------------------------ creating, continuing

    @classmethod
    def open(cls, config: RunConfig, fresh: bool, world: World) -> RunDirectory:
        """Create the run's directory, or continue what is there. Called on every rank.

        Args:
            fresh: move an old run aside, to `<name>.old-<n>`. A requeued Slurm job that has already done so
                continues instead.

        Raises:
            UserError: the directory holds a run of another config (every differing field is named), or no run
                at all, or one to be moved aside that lives. What is there stays as it is.
        """

        def on_rank_0() -> RunDirectory:
            self = cls(config.run_directory)
            self._open(config, fresh, world)
            return self

        return on_main(f"open {config.run_directory}", on_rank_0)

    def _open(self, config: RunConfig, fresh: bool, world: World) -> None:
        here = config.model_dump(mode="json")
        now = environment.describe(world.size)
        self.config_hash = sameness.fingerprint(here)
        self._documents = {
            self.config.name: _yaml(config.model_dump(mode="json", exclude_unset=True)),
            self.resolved_config.name: _yaml(here),
            self.environment.name: json.dumps(now, indent=2) + "\n",
            self.command.name: shlex.join(sys.argv) + "\n",
        }
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file, not a run directory", "", "choose another `name`")
        if self.path.is_dir() and any(self.path.iterdir()):
            identity = self._read_identity()
            if not fresh or _already_fresh(identity):
                self._continue(identity, config, now)
                return
            refuse_live(self.owner())
            self._move_aside()
        self.id = secrets.token_hex(8)
        identity = {
            "id": self.id,
            "name": config.name,
            "created": _now(),
            "config": self.config_hash,
            "code": now["code"],
            "data": None,
            "micro_size": config.batch.rows_per_pass,
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
        }
        self._create({self.identity.name: json.dumps(identity, indent=2) + "\n", **self._documents})

    def differing(self, config: RunConfig) -> tuple[list[str], list[str]]:
        """Fields of the run here that a config has otherwise: those that do no harm, and those that it cannot go on
        with."""
        there = _as_of_now(config, yaml.safe_load(self.resolved_config.read_text(encoding="utf-8")))
        return sameness.compare(config.model_dump(mode="json"), there)

    def _continue(self, identity: dict[str, Any], config: RunConfig, now: dict[str, Any]) -> None:
        self.changed, consequential = self.differing(config)
        if consequential:
            if identity["code"] != now["code"]:
                consequential.append("(megadistill itself has changed since the run was created)")
            fixes = [fix for start, fix in _INSTEAD.items() if any(line.startswith(start) for line in consequential)]
            why, fix = "\n  ".join(consequential), "; or ".join([*fixes, _START_OVER])
            raise UserError(f"{self.path} holds a run of another config", why, fix)
        before = json.loads(self.environment.read_text(encoding="utf-8"))
        splits = [line for line in self.changed if line.partition(":")[0] in sameness.LAYOUT]
        self.not_bitwise = environment.differences(before, now) + splits
        self.id = identity["id"]

    def _create(self, documents: dict[str, str]) -> None:
        """The directory appears whole, by one rename, or not at all."""
        parent = self.path.parent
        new = parent / f".{self.path.name}.{self.id}.tmp"
        try:
            for folder in (self.attempts, self.logs, self.checkpoints, self.control):
                (new / folder.name).mkdir(parents=True)
            for name, text in documents.items():
                with atomic_write(new / name) as handle:
                    handle.write(text)
            os.rename(new, self.path)
            fsync_directory(parent)
        except OSError as error:
            fix = "start it again to continue what another process began" if self.identity.exists() else ""
            raise UserError(f"cannot create the run directory {self.path}", str(error), fix) from error
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _read_identity(self) -> dict[str, Any]:
        try:
            return json.loads(self.identity.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            fix = "choose another `name` or `directory`"
            raise UserError(f"{self.path} exists and is not a run directory", str(error), fix) from None

    def _move_aside(self) -> None:
        number = 1
        while (old := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        os.rename(self.path, old)

    @classmethod
    def micro_size(cls, config: RunConfig, fresh: bool) -> int | None:
        """The batch.micro_size that the run of a config has begun with; None where `open` will begin one."""
        self = cls(config.run_directory)
        if not self.identity.exists():
            return None
        identity = self._read_identity()
        if fresh and not _already_fresh(identity):
            return None
        known = identity.get("micro_size")
        return int(known or yaml.safe_load(self.resolved_config.read_text(encoding="utf-8"))["batch"]["micro_size"])

    # ------------------------------------------------------------------ owning

    def claim(self) -> int:
        """Take the run over: from here on no older attempt can commit. Called on every rank, after `open`.

        Returns:
            this attempt's number, on every rank.

        Raises:
            StaleAttempt: since `open`, the directory was moved, removed or started over.
        """
        self.attempt = on_main(f"claim {self.path}", self._claim)
        return self.attempt

    def _claim(self) -> int:
        self._still_this_run()
        attempt = self._claims.take(
            {
                "started": _now(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "slurm_job": os.environ.get("SLURM_JOB_ID"),
                "slurm_restart_count": os.environ.get("SLURM_RESTART_COUNT"),
                "world_size": rank_and_size()[1],
                "command": shlex.join(sys.argv),
                "changed": self.changed,
                "not_bitwise": self.not_bitwise,
            }
        )
        for name, text in self._documents.items():
            with atomic_write(self.path / name) as document:
                document.write(text)
        end_cut_line(self.journal_file)
        return attempt

    def owner(self) -> dict[str, Any]:
        """What the newest claim says; nothing where there is none."""
        return self._claims.read(self._claims.newest())

    def still_ours(self) -> None:
        """Check that no newer attempt has claimed the run.

        Raises:
            StaleAttempt: one has, or the directory was moved, removed or started over.
        """
        assert self.attempt is not None, "claim first"
        self._still_this_run()
        newest = self._claims.newest()
        if newest > self.attempt:
            owner = self._claims.read(newest)
            why = f"host {owner.get('host')}, pid {owner.get('pid')}, Slurm job {owner.get('slurm_job')}"
            raise StaleAttempt(f"attempt {newest} has taken over from attempt {self.attempt}", why, _LET_IT_RUN)

    def _still_this_run(self) -> None:
        try:
            identity = self._read_identity()["id"]
        except UserError as error:
            raise StaleAttempt(f"the run directory {self.path} is gone", error.why) from None
        if identity != self.id:
            why = f"it now holds run {identity}, ours was {self.id}"
            raise StaleAttempt(f"{self.path} has been started over", why, _LET_IT_RUN)

    def resumed(self, origin: Origin | None) -> None:
        """Record the (step, attempt) of the checkpoint that this attempt continues; None: from nothing.

        For every rank, after restoring and before training; the fence of `engine.checkpoint` rests on it.

        Raises:
            StaleAttempt: a newer attempt has claimed the run.
        """

        def record() -> None:
            self.still_ours()
            assert self.attempt is not None
            self._claims.resumed(self.attempt, origin)

        on_main("record the checkpoint that was resumed from", record)

    def history(self) -> dict[int, Origin | None]:
        """What every attempt resumed from, for `engine.checkpoint`."""
        return self._claims.history()

    # ------------------------------------------------------------------ telling

    def data_is(self, fingerprint: str) -> None:
        """Record which data the run trains on, or check that it still is that data. Called on every rank.

        Raises:
            UserError: it is other data.
        """

        def record() -> None:
            identity = self._read_identity()
            if identity["data"] is None:
                write_json(self.identity, {**identity, "data": fingerprint})
            elif identity["data"] != fingerprint:
                raise UserError(
                    f"the data of the run {self.path} has changed",
                    f"fingerprint {fingerprint} here / {identity['data']} in the run",
                    f"prepare the data again as it was, or {_START_OVER}",
                )

        on_main("record the data's fingerprint", record)

    def journal(self, event: str, step: int | None = None, **facts: Any) -> None:
        """Append one event, flushed to disk; does nothing on other ranks than 0."""
        if rank_and_size()[0] == 0:
            row = {"time": _now(), "event": event, "attempt": self.attempt, "step": step, **facts}
            append_line(self.journal_file, row)

    def events(self) -> list[dict[str, Any]]:
        """The journal so far."""
        return read_lines(self.journal_file)

    @property
    def state(self) -> str:
        """What STATUS says it is: running, stopped, done, ..."""
        try:
            return str(json.loads(self.status_file.read_text(encoding="utf-8"))["state"])
        except FileNotFoundError:
            return "not started"

    def status(self, state: str, **facts: Any) -> None:
        """Replace STATUS, which says how the run is doing; does nothing on other ranks than 0."""
        if rank_and_size()[0] == 0:
            write_json(self.status_file, {"state": state, "attempt": self.attempt, "time": _now(), **facts})


def end_cut_line(path: Path) -> None:
    """End a last line that a kill cut short, so that the next one appended does not continue it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with open(path, "rb+") as handle:
        handle.seek(-1, os.SEEK_END)
        if handle.read(1) != b"\n":
            handle.write(b"\n")


def _already_fresh(identity: dict[str, Any]) -> bool:
    """Whether this Slurm job, now requeued with its `--fresh`, created the run itself."""
    job = os.environ.get("SLURM_JOB_ID")
    return job is not None and identity["slurm_job"] == job and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"


def _as_of_now(config: RunConfig, stored: dict[str, Any]) -> dict[str, Any]:
    """A stored config as this version resolves it: fields that have come since have their defaults. As it is where this
    version knows some of it no more."""
    try:
        return type(config).model_validate(stored).model_dump(mode="json")
    except ValueError:
        return stored


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
