"""An objective that is infinite in some steps, or on some rows: a plugin for test_nonfinite."""

from typing import Literal

from megadistill.core.types import Needs, Term
from megadistill.objectives.base import Objective


class Exploding(Objective):
    """The student's last hidden states, times infinity in the given micro-batches, and those with given rows."""

    kind: Literal["exploding"]
    at: tuple[int, ...] = ()
    rows: tuple[int, ...] = ()

    def needs(self):
        return Needs(student_hidden=frozenset({-1}))

    def build(self, student, teacher):
        calls = []

        def loss(signals, teacher_signals, batch):
            calls.append(1)
            total = signals.hidden[-1].float().square().sum()
            bad = len(calls) in self.at or not set(self.rows).isdisjoint(batch.rows.tolist())
            return Term(total * (float("inf") if bad else 1e-6), "tokens")

        return loss
