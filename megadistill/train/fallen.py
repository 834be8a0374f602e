"""Which rank failed first, so that the others can name it instead of the connection that broke."""

from __future__ import annotations

import json
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from megadistill.core.errors import Exit, UserError
from megadistill.core.files import write_json
from megadistill.core.together import RankFailed
from megadistill.train.memory import OutOfMemory
from megadistill.train.watchdog import hung_file, hung_ranks, last_heard

PATIENCE_SECONDS = 3.0
"""How long the word of a failed rank may take through a shared file system."""
_BROKEN = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")


class PeerFailed(UserError):
    """This rank is well; another one is not."""

    exit_code = Exit.CRASH


def leave_word(run: Path, attempt: int, rank: int, doing: str, error: BaseException) -> None:
    """Say what failed here, if it failed here first: not what fails on all ranks alike, nor a connection that broke.

    Args:
        doing: the phase that this rank was in, as `Watchdog.doing` says it.
    """
    alike = isinstance(error, RankFailed | UserError) and not isinstance(error, OutOfMemory)
    if alike or not isinstance(error, Exception) or is_broken_connection(error):
        return
    said = {
        "rank": rank,
        "host": socket.gethostname(),
        "doing": doing,
        "error": f"{type(error).__name__}: {error}",
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }
    write_json(run / "logs" / f"failed-a{attempt:04d}-rank-{rank:04d}.json", said)


def is_broken_connection(error: BaseException) -> bool:
    """Whether an exception says no more than that another rank does not answer."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return type(error) is RuntimeError and any(word in str(error) for word in _BROKEN)


def blame(run: Path, attempt: int, log_file: Path) -> PeerFailed:
    """What to say on a rank whose connection to another one broke: who that is, where it was, and what of.

    Args:
        log_file: a rank's own; the others' lie beside it.
    """
    again = "the same command goes on from the newest checkpoint"
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        words = [json.loads(file.read_text()) for file in (run / "logs").glob(f"failed-a{attempt:04d}-rank-*.json")]
        if words:
            first: dict[str, Any] = min(words, key=lambda word: word["time"])
            log = log_file.with_name(f"rank-{first['rank']:04d}.log")
            return PeerFailed(
                f"rank {first['rank']} on {first['host']} failed in {first['doing']}: {first['error']}",
                f"its log: {log}",
                f"mend that; {again}",
            )
        if hung := hung_ranks(run, attempt):
            return PeerFailed(
                f"rank {hung[0]} hung: {last_heard(run).get(hung[0], 'no word of it')}",
                f"its stacks: {hung_file(run, attempt, hung[0])}",
                f"see there what it waited for, and whether its host is sound (`megadistill doctor --ranks`); {again}",
            )
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    heard = "; ".join(f"rank {rank}: {text}" for rank, text in sorted(last_heard(run).items())[:16])
    return PeerFailed(
        "another rank has left without a word, as one does that is killed",
        f"last heard of: {heard}",
        f"ask the system's or Slurm's log of that host whether memory ran out; {again}",
    )
