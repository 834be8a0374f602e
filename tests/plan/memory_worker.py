"""One rank of test_memory: what the allocator holds at its most in two real steps of each given spec."""

import json
import sys

import torch

from megadistill.core import dist
from megadistill.engine.deepspeed import BatchShape, Engine, import_deepspeed
from megadistill.engine.optimizer import OptimizerConfig
from megadistill.testing import memory, planned
from megadistill.train.accumulate import accumulate
from megadistill.train.stragglers import Stopwatch


def two_steps(spec, world, device):
    """From making the models on."""
    with device:
        step, teacher = planned.models(spec)
    shape = BatchShape(spec["micro"] * spec["accumulation"] * world.size, spec["micro"], spec["accumulation"])
    engine = Engine(planned.engine(spec), OptimizerConfig(), step, shape, device)
    mine = [planned.batch(spec) for _ in range(spec["accumulation"])]
    counts = dist.sum_over_ranks(torch.stack([batch.counts() for batch in mine]).sum(0))
    for number in (1, 2):
        accumulate(engine, teacher, mine, counts, step=number, seed=0, check_ranks=False, stopwatch=Stopwatch(device))
        engine.step(1.0)
    engine.close()


def main():
    world = dist.from_environment()
    device = dist.connect(world, 60)
    torch.set_num_threads(1)
    import_deepspeed()
    for spec in json.loads(sys.argv[1]):
        found = memory.peak(lambda spec=spec: two_steps(spec, world, device), device)
        if world.is_main:
            print(json.dumps(found), flush=True)
    dist.barrier()
    dist.disconnect()


main()
