"""Who asked this run to stop or to save: signals to any rank, or a file put into the run's `control/` folder.

Installed before torch is imported, since a scheduler's warning may come during the imports: no torch here.
"""

from __future__ import annotations

import signal
from enum import IntEnum
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)

_received: list[str] = []


class Want(IntEnum):
    """What a rank wants at the end of this step. The sum over all ranks tells what any of them wants."""

    NOTHING = 0
    SAVE = 1
    STOP = 1 << 20
    """More than ranks that could want a save. Stopping saves first."""


def install() -> None:
    """Make USR1, USR2, TERM and INT ask for a stop after the current step; a second INT interrupts at once.

    Main thread only. The handler does nothing but note the signal: whatever saves runs at a step's end.
    """
    _received.clear()
    for number in SIGNALS:
        signal.signal(number, _note)


def requested() -> bool:
    """Whether a signal has asked this process to stop."""
    return bool(_received)


def reason() -> str:
    """The signals that came, in order, for the journal; empty if none."""
    return ", ".join(_received)


def wanted(control: Path | None) -> Want:
    """What this rank wants now.

    Args:
        control: the run's `control/` folder on rank 0, None on the others: one process looks at the disk.
    """
    if requested() or (control is not None and (control / "STOP").exists()):
        return Want.STOP
    if control is not None and (control / "SAVE").exists():
        return Want.SAVE
    return Want.NOTHING


def decide(total: float) -> Want:
    """What all ranks do, from the sum of what each `wanted`."""
    return Want.STOP if total >= Want.STOP else Want.SAVE if total >= Want.SAVE else Want.NOTHING


def done(control: Path, want: Want) -> None:
    """Take away the control files that have been acted on: a stop saves, so it answers both. Rank 0 only."""
    for name in ("SAVE", "STOP") if want == Want.STOP else ("SAVE",):
        (control / name).unlink(missing_ok=True)


def _note(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    if number == signal.SIGINT and name in _received:
        raise KeyboardInterrupt
    _received.append(name)
