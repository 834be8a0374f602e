"""One rank of test_split_invariance: the full gradient of one global batch, split as told."""

import json
import sys
from dataclasses import fields

import torch

from megadistill.core import dist
from megadistill.core.types import Batch
from megadistill.engine.deepspeed import BatchShape, Engine, EngineConfig
from megadistill.engine.optimizer import OptimizerConfig
from megadistill.objectives.cosine import Cosine
from megadistill.objectives.hard_ce import HardCE
from megadistill.objectives.soft_ce import SoftCE
from megadistill.teachers.online import OnlineSource
from megadistill.testing import tiny
from megadistill.train.loop import accumulate
from megadistill.train.step import DistillStep

spec = json.loads(sys.argv[1])
world = dist.from_environment()
device = dist.connect(world, 60)
torch.set_num_threads(1)
rows, micro = spec["rows"], spec["micro"]
whole = tiny.batch(rows, seed=spec["seed"])
architecture = spec.get("architecture", "bert")
teacher = OnlineSource("tiny", tiny.language_model(architecture, 3, seed=1))
student = tiny.language_model(architecture, 2, seed=2, **spec.get("config", {}))
objectives = [SoftCE(kind="soft_ce", temperature=2, weight=5), HardCE(kind="hard_ce", weight=2), Cosine(kind="cosine")]

step = DistillStep(student, objectives, [o.build(student.dims, teacher.dims) for o in objectives])
shape = BatchShape(rows, micro, rows // (micro * world.size))
engine = Engine(
    EngineConfig(zero_stage=spec["stage"], precision=spec.get("precision", "fp32"), persistence_threshold=0),
    OptimizerConfig(gradient_clipping=0.0),
    step,
    shape,
    device,
)


def part(micro_batch: int) -> Batch:
    start = (micro_batch * world.size + world.rank) * micro
    return Batch(**{f.name: getattr(whole, f.name)[start : start + micro] for f in fields(Batch)})


mine = [part(i) for i in range(shape.accumulation)]
counts = dist.sum_over_ranks(torch.stack([b.counts() for b in mine]).sum(0))
accumulate(engine, teacher, mine, counts, first_step=True, world=world)

from deepspeed.utils import safe_get_full_grad  # noqa: E402

gradients = {}
for name, parameter in engine.module.named_parameters():
    whole_gradient = safe_get_full_grad(parameter) if spec["stage"] or spec.get("precision") else parameter.grad
    gradients[name] = torch.zeros(()) if whole_gradient is None else whole_gradient.detach().float().cpu()
if world.is_main:
    torch.save(gradients, spec["output"])
dist.barrier()
dist.disconnect()
