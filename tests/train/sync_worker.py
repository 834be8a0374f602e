"""The rank of test_syncs: how often a step asks a tensor for its number, by where it asks (inside the head op, which a
dispatch mode does not enter, tests/kernels/test_gpu.py looks)."""

import json
import sys
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megadistill.core import dist
from megadistill.objectives.step import DistillStep
from megadistill.run.build import build
from megadistill.run.config import load
from megadistill.train.accumulate import accumulate
from megadistill.train.job import wrap
from megadistill.train.stragglers import Stopwatch

ASKS = {"_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "_unique2", "unique_consecutive"}
"""What a GPU must have finished before the host can go on: `.item()`, `float()`, `if tensor`, shapes that depend on
numbers."""


class Asked(TorchDispatchMode):
    """Counts them by the file that asks."""

    def __init__(self):
        super().__init__()
        self.where = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ASKS:
            frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename]
            self.where[f"{'/'.join(frames[-2].filename.split('/')[-2:])}: {frames[-2].name}"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def refused_by_cuda(device):
    """On a GPU, where any wait for it is an error then, whatever asks."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    yield
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")


def main():
    config = load(Path(sys.argv[1]), json.loads(sys.argv[2]))
    world = dist.from_environment()
    device = dist.connect(world, 60)
    parts = build(config, world, device)
    step = DistillStep(parts.student, config.objectives, parts.losses)
    engine = wrap(config, parts, device, step)
    found = {}
    for number, watch in enumerate([False, False, True], 1):
        batches = parts.stream.take(number)  # made on the CPU, by a thread
        counts = torch.stack([batch.counts() for batch in batches]).sum(0)
        options = {"seed": 0, "check_ranks": False, "stopwatch": Stopwatch(device), "watch": watch}
        with Asked() as passes, refused_by_cuda(device):
            sums, _ = accumulate(engine, parts.teacher, batches, counts, step=number, **options)
        with Asked() as update:
            engine.step(1.0)
        assert sums.isfinite().all()
        found = {"micro_batches": len(batches), "watch": watch, "passes": passes.where, "update": update.where}
        print(json.dumps(found), flush=True)
    with Asked() as control:
        float(sums[0])
    assert sum(control.where.values()) == 1, "it does count"
    dist.disconnect()


main()
