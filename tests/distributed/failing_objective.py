"""An objective that fails on rank 1 in a given call, or kills its process: a plugin for test_fallen."""

import os
import signal
from typing import Literal

from megadistill.core.types import Needs, Term
from megadistill.objectives.base import Objective


class Failing(Objective):
    """A zero, until call number `at` on rank 1."""

    kind: Literal["failing"]
    at: int
    kill: bool = False

    def needs(self):
        return Needs(student_hidden=frozenset({-1}))

    def build(self, student, teacher):
        calls = []

        def loss(signals, teacher_signals, batch):
            calls.append(1)
            if len(calls) == self.at and os.environ["RANK"] == "1":
                if self.kill:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise ValueError("this row is cursed")
            return Term(signals.hidden[-1].float().sum() * 0.0, "tokens")

        return loss
