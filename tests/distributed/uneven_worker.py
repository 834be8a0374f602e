"""One rank of a run whose objective touches its projection on rank 0 only: must be refused before anything is sent."""

import sys

import torch
from torch import nn

from megadistill.core import dist
from megadistill.core.errors import UserError
from megadistill.core.types import Term
from megadistill.engine.deepspeed import BatchShape, Engine, EngineConfig
from megadistill.engine.optimizer import OptimizerConfig
from megadistill.objectives.base import Objective
from megadistill.objectives.step import DistillStep
from megadistill.testing import tiny
from megadistill.train.accumulate import accumulate
from megadistill.train.stragglers import Stopwatch

world = dist.from_environment()


class Uneven(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(tiny.WIDTH, 1), nn.Linear(tiny.WIDTH, 1)

    def forward(self, student, teacher, batch):
        states = student.head(lambda hidden, weight, bias: hidden, torch.arange(4))
        used = self.first if world.is_main or sys.argv[1] == "even" else self.second
        return Term(used(states).sum(), "tokens")


device = dist.connect(world, 60)
step = DistillStep(tiny.language_model("bert", 1), [Objective(kind="uneven")], [Uneven()])
engine = Engine(EngineConfig(zero_stage=2), OptimizerConfig(), step, BatchShape(8, 4, 1), device)
batch = tiny.batch(4, seed=world.rank)
counts = dist.sum_over_ranks(batch.counts())
try:
    accumulate(engine, None, [batch], counts, step=1, seed=0, check_ranks=True, stopwatch=Stopwatch(device))
    verdict = "trained"
except UserError as error:
    verdict = f"refused: {error.what} ({error.why})"
sys.stdout.write(verdict + "\n")
dist.disconnect()
