"""What can go wrong through no bug of ours, and the exit code each ending has."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum


class Exit(IntEnum):
    """Process exit codes; a scheduler decides by them whether to start the run again."""

    DONE = 0
    CRASH = 1
    USER_ERROR = 2
    STOPPED = 85
    """Stopped after a checkpoint: requeue me."""
    NEVER_REQUEUE = 93
    """Diverged, no progress, or a stale attempt: starting again would not help."""


class UserError(Exception):
    """Something the user can cause and mend; shown without a traceback, exit code 2.

    Args:
        what: what happened, in one sentence.
        why: where it came from (file:key, or step and rank) or what was found there.
        fix: what to do about it.
    """

    exit_code = Exit.USER_ERROR

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(what, why, fix)
        self.what, self.why, self.fix = what, why, fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)


def refuse(problems: Sequence[UserError], what: str) -> None:
    """Raises:
    UserError: there are any; all of them as one, each once, under `what`, which their number follows.
    """
    told = list(dict.fromkeys(map(str, problems)))
    if told:
        raise UserError(f"{what}: {len(told)} problem(s)", "\n".join(told).replace("\n", "\n  "))


class StaleAttempt(UserError):
    """A newer attempt has claimed the run directory: this one must write nothing more."""

    exit_code = Exit.NEVER_REQUEUE


class Diverged(UserError):
    """The loss stayed non-finite: more of the same steps would not help."""

    exit_code = Exit.NEVER_REQUEUE
