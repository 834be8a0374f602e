"""Who asked this run to stop or to save: signals to any rank, or a file put into the run's `control/` folder.

Installed before torch is imported, since a scheduler's warning may come during the imports: no torch here.
"""

from __future__ import annotations

import math
import signal
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)

STOP, SAVE, ROLLBACK, UNSAVED = BITS = 1, 2, 4, 8
"""Bits of the stop word, which the loop unites over all ranks: to stop (which saves first), to save, to go back as
control/ROLLBACK says, and that a checkpoint could not be written."""

_FILES = {"STOP": STOP, "SAVE": SAVE, "ROLLBACK": ROLLBACK}

_received: list[str] = []


def install() -> None:
    """Make USR1, USR2, TERM and INT ask for a stop after the current step; a second INT interrupts at once.

    Main thread only. The handler does nothing but note the signal: whatever saves runs at a step's end.
    """
    _received.clear()
    for number in SIGNALS:
        signal.signal(number, _note)


def request(why: str) -> None:
    """Ask this process to stop, as a signal would."""
    if why not in _received:
        _received.append(why)


def requested() -> bool:
    """Whether this process was asked to stop."""
    return bool(_received)


def reason() -> str:
    """The signals and requests that came, in order, for the journal; empty if none."""
    return ", ".join(_received)


def word(control: Path, is_main: bool) -> int:
    """What this rank wants now: bits of STOP, SAVE and ROLLBACK.

    Args:
        control: the run's `control/` folder; only rank 0 looks into it, so the disk is asked once a step.
    """
    wish = STOP if requested() else 0
    if is_main:
        wish |= sum(bit for name, bit in _FILES.items() if (control / name).exists())
    return wish


def done(control: Path, word: int) -> None:
    """Take away the control files that were obeyed, on rank 0; a stop saves, so it answers both."""
    for name, bit in _FILES.items():
        if word & bit or (word & STOP and bit == SAVE):
            (control / name).unlink(missing_ok=True)


def first_to_undo(control: Path, since: int) -> float:
    """The first step to undo, by control/ROLLBACK: the number it holds, or `since` if it is empty; infinite when it
    holds something else."""
    said = (control / "ROLLBACK").read_text(encoding="utf-8").strip() or str(since)
    return max(int(said), 1) if said.isdigit() else math.inf


def _note(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    if number == signal.SIGINT and name in _received:
        raise KeyboardInterrupt
    _received.append(name)
