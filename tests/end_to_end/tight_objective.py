"""An objective that leaves its process so much memory and no more, as `ulimit -d` does: for test_micro_size."""

import os
import resource
from pathlib import Path
from typing import Literal

from megadistill.core.types import Needs, Term
from megadistill.objectives.base import Objective
from megadistill.train import micro_size

micro_size.USABLE = float(os.environ.get("USABLE", micro_size.USABLE))


class Tight(Objective):
    """A zero. When it is built, its rank may take so many megabytes beyond what it has: TIGHT names them."""

    kind: Literal["tight"]

    def needs(self):
        return Needs(student_hidden=frozenset({-1}))

    def build(self, student, teacher):
        tighten()
        return lambda signals, teacher_signals, batch: Term(signals.hidden[-1].float().sum() * 0.0, "tokens")


def tighten():
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    mine = int(os.environ["TIGHT"].split()[int(os.environ["RANK"])])
    limit = int(status["VmData"].split()[0]) * 1024 + mine * 10**6
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
