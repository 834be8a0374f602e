"""An objective that never comes back on rank 1, with the interpreter's lock held: a plugin for test_hang."""

import ctypes
from typing import Literal

from megadistill.core.together import rank_and_size
from megadistill.core.types import Term
from megadistill.objectives.base import Objective


class Hanging(Objective):
    """Zero, until it hangs."""

    kind: Literal["hanging"]
    after: int

    def build(self, student, teacher):
        calls = []

        def loss(signals, teacher_signals, batch):
            calls.append(1)
            if rank_and_size()[0] == 1 and len(calls) > self.after:
                ctypes.PyDLL(None).sleep(600)
            return Term(signals.head(lambda hidden, weight, bias: 0.0 * hidden.sum(), batch.rows[:0]), "tokens")

        return loss
