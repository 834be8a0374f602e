"""What a run keeps on disk, whether this config may continue it, and which attempt owns it."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from megadistill.core.dist import World
from megadistill.core.errors import StaleAttempt, UserError
from megadistill.core.files import (
    append_line,
    atomic_write,
    fsync_directory,
    read_lines,
    sha256_json,
    write_json,
)
from megadistill.core.schema import flatten
from megadistill.core.together import on_main, rank_and_size
from megadistill.run import environment

if TYPE_CHECKING:
    from megadistill.engine.checkpoint import Origin
    from megadistill.run.config import RunConfig

_HARMLESS = (
    "name",
    "directory",
    "log",
    "evaluate",
    "checkpoint",
    "train.max_nonfinite_steps",
    "train.timeout_seconds",
)
_LENGTH = ("train.steps", "schedule.total_steps")
"""Harmless as long as both together still say that the learning rate's decay ends at the same step."""


class RunDirectory:
    """The paths of one run, and what this process knows of it after `open` and `claim`."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.id = ""
        """Set by `open`; a directory of another id is another run, even at the same path."""
        self.attempt: int | None = None
        """Set by `claim`."""
        self.changed: list[str] = []
        """Fields that differ harmlessly from those the run had before."""
        self.not_bitwise: list[str] = []
        """Why this attempt will not continue the run bit for bit; to be printed and journaled."""
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

    def log_file(self, rank: int) -> Path:
        return self.logs / f"rank-{rank:04d}.log"

    # ------------------------------------------------------------------------------ creating, continuing

    @classmethod
    def open(cls, config: RunConfig, fresh: bool, world: World) -> RunDirectory:
        """Create the run's directory, or continue what is there; called on every rank.

        Args:
            fresh: move an old run aside, to `<name>.old-<n>`. A requeued Slurm job that has already done so
                continues instead.

        Raises:
            UserError: the directory holds a run of another config (every differing field is named), or no run
                at all. What is there stays as it is.
        """
        self = cls(config.run_directory)
        self.id, self.changed, self.not_bitwise, self._documents = on_main(
            f"open {self.path}", lambda: self._open(config, fresh, world)
        )
        return self

    def _open(
        self, config: RunConfig, fresh: bool, world: World
    ) -> tuple[str, list[str], list[str], dict[str, str]]:
        here = config.model_dump(mode="json")
        now = environment.describe(world.size)
        documents = {
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
                changed = self._changed(here, config.total_steps, identity, now["code"])
                before = json.loads(self.environment.read_text(encoding="utf-8"))
                return identity["id"], changed, environment.differences(before, now), documents
            self._move_aside()
        identity = {
            "id": secrets.token_hex(8),
            "name": config.name,
            "created": _now(),
            "config": sha256_json(_consequential(here, config.total_steps)),
            "code": now["code"],
            "data": None,
            "slurm_job": os.environ.get("SLURM_JOB_ID"),
        }
        self._create({self.identity.name: json.dumps(identity, indent=2) + "\n", **documents})
        return identity["id"], [], [], documents

    def _create(self, documents: dict[str, str]) -> None:
        """The directory appears whole, by one rename, or not at all."""
        parent = self.path.parent
        parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{self.path.name}.", dir=parent))
        try:
            new.chmod(0o777 & ~_umask())
            for folder in (self.attempts, self.logs, self.checkpoints, self.control):
                (new / folder.name).mkdir()
            for name, text in documents.items():
                with atomic_write(new / name) as handle:
                    handle.write(text)
            os.rename(new, self.path)
            fsync_directory(parent)
        except OSError as error:
            fix = "start it again to continue what the other process began" if self.identity.exists() else ""
            raise UserError(f"cannot create the run directory {self.path}", str(error), fix) from error
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def _read_identity(self) -> dict[str, Any]:
        try:
            return json.loads(self.identity.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.path} exists and is not a run directory",
                str(error),
                "choose another `name` or `directory`",
            ) from None

    def _move_aside(self) -> None:
        number = 1
        while (old := self.path.with_name(f"{self.path.name}.old-{number}")).exists():
            number += 1
        os.rename(self.path, old)
        fsync_directory(self.path.parent)

    def _changed(
        self, here: dict[str, Any], total_steps: int, identity: dict[str, Any], code: dict[str, Any]
    ) -> list[str]:
        """The fields that differ from the run's, all harmless.

        Raises:
            UserError: some are not.
        """
        there = yaml.safe_load(self.resolved_config.read_text(encoding="utf-8"))
        total_there = there["schedule"]["total_steps"] or there["train"]["steps"]
        mine, theirs = dict(flatten(here)), dict(flatten(there))
        differing = [key for key in {**mine, **theirs} if mine.get(key, _ABSENT) != theirs.get(key, _ABSENT)]
        told = {
            key: f"{key}: {mine.get(key, _ABSENT)} here / {theirs.get(key, _ABSENT)} in the run"
            for key in differing
        }
        refused = [key for key in differing if not _is_harmless(key, total_steps == total_there)]
        if refused:
            lines = [told[key] for key in refused]
            if identity["code"] != code:
                lines.append("(megadistill itself has changed since the run was created)")
            raise UserError(
                f"{self.path} holds a run of another config",
                "\n  ".join(lines),
                _START_OVER,
            )
        return list(told.values())

    # ------------------------------------------------------------------------------ owning

    def claim(self) -> int:
        """Take the run over: from here on no older attempt can commit. Called on every rank, after `open`.

        The claim is a file that only one process can create; its number is this attempt's, on every rank.

        Raises:
            StaleAttempt: since `open`, the directory was moved, removed or started over.
        """
        self.attempt = on_main(f"claim {self.path}", self._claim)
        return self.attempt

    def _claim(self) -> int:
        self._still_this_run()
        attempt = max(self._claims(), default=0) + 1
        self.attempts.mkdir(exist_ok=True)
        while True:
            try:
                handle = os.open(self._claim_file(attempt), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
                break
            except FileExistsError:
                attempt += 1
        os.close(handle)
        write_json(
            self._claim_file(attempt),
            {
                "attempt": attempt,
                "started": _now(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "slurm_job": os.environ.get("SLURM_JOB_ID"),
                "slurm_restart_count": os.environ.get("SLURM_RESTART_COUNT"),
                "world_size": rank_and_size()[1],
                "command": shlex.join(sys.argv),
                "changed": self.changed,
                "not_bitwise": self.not_bitwise,
            },
        )
        for name, text in self._documents.items():
            with atomic_write(self.path / name) as document:
                document.write(text)
        end_cut_line(self.journal_file)
        return attempt

    def still_ours(self) -> None:
        """Check that no newer attempt has claimed the run.

        Raises:
            StaleAttempt: one has, or the directory was moved, removed or replaced by another run.
        """
        assert self.attempt is not None, "claim first"
        self._still_this_run()
        newest = max(self._claims(), default=0)
        if newest > self.attempt:
            claim = self._read_claim(newest)
            owner = (
                f"host {claim.get('host', '?')}, pid {claim.get('pid', '?')}, job {claim.get('slurm_job')}"
            )
            raise StaleAttempt(
                f"attempt {newest} has taken over from attempt {self.attempt}", owner, _LET_IT_RUN
            )

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
            assert self.attempt is not None, "claim first"
            self.still_ours()
            claim = self._read_claim(self.attempt)
            write_json(self._claim_file(self.attempt), {**claim, "resumed_from": origin})

        on_main("record the checkpoint that was resumed from", record)

    def history(self) -> dict[int, Origin | None]:
        """What every attempt resumed from; attempts that never got so far are left out."""
        history: dict[int, Origin | None] = {}
        for attempt in self._claims():
            claim = self._read_claim(attempt)
            if "resumed_from" in claim:
                origin = claim["resumed_from"]
                history[attempt] = None if origin is None else (origin[0], origin[1])
        return history

    def _claim_file(self, attempt: int) -> Path:
        return self.attempts / f"{attempt:06d}.json"

    def _claims(self) -> list[int]:
        return sorted(int(path.stem) for path in self.attempts.glob("*.json") if path.stem.isdigit())

    def _read_claim(self, attempt: int) -> dict[str, Any]:
        """A claim is empty when its owner was killed while making it; it then did nothing else either."""
        try:
            return json.loads(self._claim_file(attempt).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    # ------------------------------------------------------------------------------ telling

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
                    "prepare the data again as it was, or " + _START_OVER,
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

    def status(self, state: str, **facts: Any) -> None:
        """Replace STATUS, which says how the run is doing; does nothing on other ranks than 0."""
        if rank_and_size()[0] == 0:
            write_json(self.status_file, {"state": state, "attempt": self.attempt, "time": _now(), **facts})


def end_cut_line(path: Path) -> None:
    """End a last line that a kill cut short, so that the next one appended does not continue it."""
    if path.exists() and (data := path.read_bytes()[-1:]) and data != b"\n":
        with open(path, "ab") as handle:
            handle.write(b"\n")


_ABSENT = "(absent)"
_START_OVER = "give this run another `name`, or start over with --fresh (which keeps the old run beside it)"
_LET_IT_RUN = "let the newer one run; this one has committed nothing since"


def _is_harmless(key: str, same_total_steps: bool) -> bool:
    if key in _LENGTH:
        return same_total_steps
    return any(key == name or key.startswith(f"{name}.") for name in _HARMLESS)


def _consequential(config: dict[str, Any], total_steps: int) -> dict[str, Any]:
    fields = {key: value for key, value in flatten(config) if not _is_harmless(key, True)}
    return {**fields, "total_steps": total_steps}


def _already_fresh(identity: dict[str, Any]) -> bool:
    """Whether this Slurm job, now requeued with its `--fresh`, created the run itself."""
    job = os.environ.get("SLURM_JOB_ID")
    return (
        job is not None and identity["slurm_job"] == job and os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
    )


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
