"""Whether a run may be started now: not while it lives, nor again and again for nothing."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megadistill.core.errors import Exit, UserError

_PROGRESS = ("save", "signal")
"""Events of an attempt that got somewhere, or was asked to stop and is not to blame."""


class NoProgress(UserError):
    """Restarts lead nowhere."""

    exit_code = Exit.NEVER_REQUEUE


def restarted_by_scheduler(environ: Mapping[str, str] | None = None) -> bool:
    """Whether nobody but Slurm has asked for this start; a person who starts a run again knows why."""
    env = os.environ if environ is None else environ
    return env.get("SLURM_RESTART_COUNT", "0") != "0"


def refuse_live(owner: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> None:
    """
    Args:
        owner: what the newest claim of the run says.

    Raises:
        UserError: its process lives on this host, or Slurm runs its job. (Elsewhere nobody can tell; the newer claim
            then fences the older one off, as it does where Slurm has restarted a job that it had lost sight of.)
    """
    env = os.environ if environ is None else environ
    job = owner.get("slurm_job")
    if job is not None and job == env.get("SLURM_JOB_ID") and restarted_by_scheduler(env):
        return
    here = owner.get("host") == socket.gethostname() and _trains(owner.get("pid"))
    if here or (job is not None and job != env.get("SLURM_JOB_ID") and _runs(job)):
        raise UserError(
            f"attempt {owner['attempt']} of this run is training it",
            f"host {owner['host']}, pid {owner['pid']}, Slurm job {job}, since {owner['started']}",
            "let it run, or stop it first: `touch RUN/control/STOP`",
        )


def _trains(pid: object) -> bool:
    try:
        return pid != os.getpid() and b"megadistill" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _runs(job: str) -> bool:
    """Whether Slurm says so; not where it cannot be asked."""
    command = ["squeue", "--noheader", "--job", job, "--states", "RUNNING,COMPLETING", "--format", "%i"]
    try:
        return bool(subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout.strip())
    except (OSError, subprocess.SubprocessError):
        return False


def refuse_fruitless(events: Sequence[Mapping[str, Any]], attempt: int, limit: int) -> None:
    """
    Args:
        events: the run's journal.
        attempt: the one that starts now.
        limit: how many attempts in a row may have left neither a checkpoint nor word of having been stopped. Those that
            went back do not count: the next one began in the same process.

    Raises:
        NoProgress: as many have.
    """
    fruitful = {event["attempt"] for event in events if event["event"] in _PROGRESS or _ended_well(event)}
    last = max((a for a in fruitful if a is not None and a < attempt), default=0)
    went_back = {event["attempt"] for event in events if event["event"] == "rollback"}
    fruitless = len(set(range(last + 1, attempt)) - went_back)
    if fruitless >= limit:
        errors = [str(e["error"]) for e in events if e["event"] == "end" and e.get("error")]
        raise NoProgress(
            f"the last {fruitless} attempts wrote no checkpoint, and the scheduler would go on restarting them",
            f"the last word of one: {errors[-1]}" if errors else "they left no word; see logs/",
            "mend the cause and submit again: a job's first start is always tried",
        )


def _ended_well(event: Mapping[str, Any]) -> bool:
    return event["event"] == "end" and not event.get("error")
