"""One rank of test_options: the weights after a few steps of one run, for every set of engine options it is told."""

import json
import sys
from pathlib import Path

import torch

from megadistill.core import dist
from megadistill.engine.deepspeed import BatchShape, Engine
from megadistill.objectives.step import DistillStep
from megadistill.run.build import build
from megadistill.run.config import load
from megadistill.train.accumulate import accumulate
from megadistill.train.stragglers import Stopwatch

STEPS = 3


def trained(path, assignments, world, device):
    """{parameter name: whole fp32 tensor}, the same on every rank."""
    config = load(Path(path), assignments)
    parts = build(config, world, device)
    step = DistillStep(parts.student, config.objectives, parts.losses)
    shape = BatchShape(config.batch.global_size, config.batch.micro_size, parts.accumulation)
    engine = Engine(config.engine, config.optimizer, step, shape, device)
    for number in range(STEPS):
        batches = parts.stream.take(number)
        counts = dist.sum_over_ranks(torch.stack([batch.counts() for batch in batches]).sum(0))
        accumulate(
            engine,
            parts.teacher,
            batches,
            counts,
            step=number,
            seed=config.seed,
            check_ranks=True,
            stopwatch=Stopwatch(device),
        )
        assert engine.step(1.0).applied
    weights = dict(engine.full_weights())
    engine.engine.destroy()
    return weights


def main():
    path, cases, output = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
    world = dist.from_environment()
    device = dist.connect(world, 60)
    torch.set_num_threads(1)
    weights = [trained(path, assignments, world, device) for assignments in cases]
    if world.is_main:
        torch.save(weights, output)
    dist.barrier()
    dist.disconnect()


main()
