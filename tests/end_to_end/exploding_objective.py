"""An objective that is infinite in some steps: a plugin for test_nonfinite."""

from typing import Literal

from megadistill.core.types import Needs, Term
from megadistill.objectives.base import Objective


class Exploding(Objective):
    """The student's last hidden states, times infinity in the given micro-batches."""

    kind: Literal["exploding"]
    at: list[int]

    def needs(self):
        return Needs(student_hidden=frozenset({-1}))

    def build(self, student, teacher):
        calls = []

        def loss(signals, teacher_signals, batch):
            calls.append(1)
            total = signals.hidden[-1].float().square().sum()
            return Term(total * (float("inf") if len(calls) in self.at else 1e-6), "tokens")

        return loss
