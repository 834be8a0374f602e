"""An objective that asks for more memory than any machine has, in a given call: a plugin for test_out_of_memory."""

from typing import Literal

import torch

from megadistill.core.types import Needs, Term
from megadistill.objectives.base import Objective


class Hungry(Objective):
    """The student's last hidden states; in call number `at`, counted from 1, a petabyte more."""

    kind: Literal["hungry"]
    at: int

    def needs(self):
        return Needs(student_hidden=frozenset({-1}))

    def build(self, student, teacher):
        calls = []

        def loss(signals, teacher_signals, batch):
            calls.append(1)
            if len(calls) == self.at:
                signals.hidden[-1].new_empty(2**50, dtype=torch.uint8)
            return Term(signals.hidden[-1].float().square().sum() * 1e-6, "tokens")

        return loss
