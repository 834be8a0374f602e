"""One rank of test_split_invariance: full gradients of one global batch, split in every way it is told."""

import hashlib
import json
import sys

import torch

from megadistill.core import dist
from megadistill.engine.deepspeed import BatchShape, Engine, EngineConfig
from megadistill.engine.optimizer import OptimizerConfig
from megadistill.kernels.head_losses import head_losses
from megadistill.objectives import mixture
from megadistill.objectives.cosine import Cosine
from megadistill.objectives.counterfactual import Counterfactual
from megadistill.objectives.hard_ce import HardCE
from megadistill.objectives.hidden_mse import HiddenMSE
from megadistill.objectives.pkd import PKD
from megadistill.objectives.soft_ce import SoftCE
from megadistill.objectives.step import DistillStep
from megadistill.teachers.online import OnlineSource
from megadistill.testing import tiny
from megadistill.train.accumulate import accumulate
from megadistill.train.stragglers import Stopwatch

OBJECTIVES = [
    SoftCE(kind="soft_ce", temperature=2, weight=5),
    HardCE(kind="hard_ce", weight=2),
    Cosine(kind="cosine"),
]
EXCHANGING = [
    *OBJECTIVES,
    Counterfactual(kind="counterfactual", cosine=1.0),
    HiddenMSE(kind="hidden_mse", layers={1: 1, 2: 3}, projection="per_layer"),
    PKD(kind="pkd", layers={1: 2}, positions="tokens"),
]


compiled_losses = torch.compile(head_losses, fullgraph=True, backend="aot_eager", dynamic=True)


def gradient(
    world,
    device,
    rows,
    seed,
    micro,
    stage,
    precision,
    architecture,
    exchanging=False,
    look=False,
    bypassing=False,
    compiled=False,
):
    """{parameter name: fp32 tensor} of the global batch's loss, as this rank has it; with `look`, also what is logged
    beside the losses. `bypassing`: by the wrapped module's own forward and backward, past DeepSpeed. `compiled`: the
    fused head is one graph."""
    mixture.head_losses = compiled_losses if compiled else head_losses
    whole = tiny.batch(rows, seed=seed)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    name, _, untied = architecture.partition("-")
    tying = {"tie_word_embeddings": False} if untied else {}
    teacher = OnlineSource("tiny", tiny.language_model(name, 3, seed=1).to(dtype))
    student = tiny.language_model(name, 2, seed=2, **tying)
    objectives = EXCHANGING if exchanging else OBJECTIVES
    torch.manual_seed(0)  # of the projections that they learn
    step = DistillStep(student, objectives, [o.build(student.dims, teacher.dims) for o in objectives])
    shape = BatchShape(rows, micro, rows // (micro * world.size))
    config = EngineConfig(zero_stage=stage, precision=precision, persistence_threshold=0)
    engine = Engine(config, OptimizerConfig(gradient_clipping=0.0), step, shape, device)
    mine = whole.split(micro)[world.rank :: world.size]
    counts = dist.sum_over_ranks(torch.stack([b.counts() for b in mine]).sum(0))
    looks = {"watch": look, "share_gradients": look and stage < 3}
    seen = {}
    if bypassing:
        for batch in mine:
            shares = (world.size / counts).float()
            engine.module(batch, teacher.signals(batch, step.needs), shares)[0].backward()
    else:
        _, seen = accumulate(
            engine, teacher, mine, counts, step=1, seed=0, check_ranks=True, stopwatch=Stopwatch(device), **looks
        )

    from deepspeed.utils import safe_get_full_grad

    plain = stage == 0 and precision == "fp32"
    result = {}
    for name, parameter in engine.module.named_parameters():
        value = parameter.grad if plain else safe_get_full_grad(parameter)
        result[name] = torch.zeros(()) if value is None else value.detach().float().cpu().clone()
    engine.engine.destroy()
    return result | {name: dist.sum_over_ranks(value.detach().double().cpu()) for name, value in seen.items()}


def agreed(gradients):
    """Whether all ranks have the same gradient, to the last bit."""
    digest = hashlib.sha256()
    for name, value in sorted(gradients.items()):
        digest.update(name.encode())
        digest.update(value.numpy().tobytes())
    return len(set(dist.gather_objects(digest.hexdigest()))) == 1


def main():
    specs, output = json.loads(sys.argv[1]), sys.argv[2]
    world = dist.from_environment()
    device = dist.connect(world, 60)
    torch.set_num_threads(1)
    gradients = [gradient(world, device, **spec) for spec in specs]
    agree = [agreed(one) for one in gradients]
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert (graphs > 0) == any(spec.get("compiled") for spec in specs)
    if world.is_main:
        torch.save(list(zip(gradients, agree, strict=True)), output)
    dist.barrier()
    dist.disconnect()


main()
