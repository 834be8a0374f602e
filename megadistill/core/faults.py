"""Named places at which a test may have this process killed, to show that nothing is lost there."""

from __future__ import annotations

import os
import signal

VARIABLE = "MEGADISTILL_FAULT"
"""`place:rank`: the rank that comes to this place dies there, as by SIGKILL."""

PLACES = (
    "checkpoint.begun",
    "checkpoint.written",
    "checkpoint.hashed",
    "checkpoint.described",
    "checkpoint.renamed",
    "checkpoint.trashed",
    "restore.verified",
    "evaluate",
)


def place(name: str, rank: int) -> None:
    """Die here if somebody asked for it."""
    assert name in PLACES
    if os.environ.get(VARIABLE) == f"{name}:{rank}":
        os.kill(os.getpid(), signal.SIGKILL)
