"""One rank of test_memory: what the allocator holds at its most in two real steps of each given spec."""

import gc
import json
import sys

import torch
from torch.profiler import ProfilerActivity, profile

from megadistill.core import dist
from megadistill.engine.deepspeed import BatchShape, Engine, import_deepspeed
from megadistill.engine.optimizer import OptimizerConfig
from megadistill.testing import planned
from megadistill.train.accumulate import accumulate
from megadistill.train.stragglers import Stopwatch


def peak(spec, world, device):
    """The most bytes that were allocated at once since the models were made."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        step, teacher = planned.models(spec)
        shape = BatchShape(spec["micro"] * spec["accumulation"] * world.size, spec["micro"], spec["accumulation"])
        engine = Engine(planned.engine(spec), OptimizerConfig(), step, shape, device)
        mine = [planned.batch(spec) for _ in range(spec["accumulation"])]
        counts = dist.sum_over_ranks(torch.stack([batch.counts() for batch in mine]).sum(0))
        for number in (1, 2):
            accumulate(
                engine, teacher, mine, counts, step=number, seed=0, check_ranks=False, stopwatch=Stopwatch(device)
            )
            engine.step(1.0)
    engine.close()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    live = most = 0
    for _, size in changes:
        live += size
        most = max(most, live)
    return most


def main():
    world = dist.from_environment()
    device = dist.connect(world, 60)
    torch.set_num_threads(1)
    import_deepspeed()
    for spec in json.loads(sys.argv[1]):
        found = peak(spec, world, device)
        gc.collect()  # what the last one let go of must not be counted as the next one's
        if world.is_main:
            print(json.dumps(found), flush=True)
    dist.barrier()
    dist.disconnect()


main()
