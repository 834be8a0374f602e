"""What one rank holds in memory at every moment of a step, part by part, and how much it computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from megadistill.core.types import COUNT_KINDS, Batch
from megadistill.models.heads import output_layer
from megadistill.models.signals import LanguageModel
from megadistill.objectives.step import DistillStep
from megadistill.plan.trace import META, Trace
from megadistill.plan.zero import Sharded
from megadistill.teachers.base import Source


@dataclass(frozen=True)
class Footprint:
    """Bytes on one rank, a student's."""

    resting: dict[str, int]
    """Part -> what stays from step to step."""
    answers: int
    """What the teacher's pass leaves for the student's: hidden states, and what its head will read."""
    teacher_pass: int
    """The most that the teacher's pass needs besides."""
    activations: int
    """What the student's forward pass leaves for its backward pass."""
    workspace: int
    """What the rest of the step needs at its most: gradients on their way, buckets, blocks of logits."""
    peak: int
    """The most at any moment of a step."""
    teacher_rank: int
    """The most on a rank that is its teacher's own; 0 where there is none."""
    teacher_flops: int
    """Of one micro-batch; the teacher's vocabulary head counts with the student's, which asks it."""
    forward_flops: int
    backward_flops: int

    @property
    def parts(self) -> dict[str, int]:
        """Those that a page tells of."""
        parts = {
            **self.resting,
            "teacher's answers": self.answers,
            "activations": self.activations,
            "gradients, buckets and blocks at the peak": self.workspace,
        }
        return {name: size for name, size in parts.items() if size}

    @property
    def flops(self) -> int:
        """Of one micro-batch."""
        return self.teacher_flops + self.forward_flops + self.backward_flops


def footprint(
    step: DistillStep,
    teacher: Source | None,
    batch: Batch,
    sharded: Callable[[], Sharded],
    accumulation: int,
    ranks: int,
    on_gpu: bool,
) -> Footprint:
    """Go through one step without numbers.

    Args:
        step: the student and its objectives on the meta device, in the dtype of its forward pass.
        teacher: on the meta device too.
        batch: a micro-batch, on the CPU; only its shapes and its numbers of targets matter.
        sharded: makes the state of a rank.
        accumulation: micro-batches a step and rank.
        ranks: how many share what is sharded.
        on_gpu: as on a GPU: its allocator, its kernels.
    """
    with Trace(on_gpu) as trace:
        resting: dict[str, int] = {}
        state = sharded()
        if state.engine.zero_stage == 3:  # its share and what is gathered of it stand in the state
            for value in step.parameters():
                trace.ignore(value)
        resting["student's weights"] = _weights(trace, step)
        models = teacher.models if teacher is not None else ()
        apart = any(model.placement == "own_ranks" for model in models)
        spread = [_spread(trace, model, ranks) for model in models if model.placement != "replicated"]
        whole = [_weights(trace, model) for model in models if model.placement == "replicated"]
        resting["teacher's weights"] = sum(whole) + sum(tensor.nbytes for tensor in spread)
        resting |= {name: sum(t.nbytes for t in tensors) for name, tensors in state.resting.items()}
        shares = torch.ones(len(COUNT_KINDS))
        base = trace.live
        hooks = [p.register_post_accumulate_grad_hook(state.on_gradient) for p in state.parameters]
        try:
            for number in range(min(accumulation, 2)):
                before = trace.peak
                with trace.measured() as teaching:
                    signals = teacher.signals(batch, step.needs) if teacher is not None else None
                if apart:  # its pass is not on this rank
                    trace.peak = max(before, trace.live)
                teacher_flops, answers = trace.take_flops(), trace.live - base
                loss, _ = step(batch, signals, shares, 1)
                forward_flops = trace.take_flops()
                activations = trace.live - base - answers
                loss.backward()
                state.after_backward()
                backward_flops = trace.take_flops()
                if number == 0:
                    first = answers, activations
                del loss, _, signals
            state.step()
        finally:
            for hook in hooks:
                hook.remove()
        peak = trace.peak
    answers, activations = first
    weights = sum(p.nbytes for model in models for p in model.parameters())
    return Footprint(
        resting,
        answers,
        0 if apart else max(teaching[0] - answers, 0),
        activations,
        peak - base - answers - activations,
        peak,
        weights + teaching[0] if apart else 0,
        teacher_flops,
        forward_flops,
        backward_flops,
    )


def _weights(trace: Trace, module: nn.Module) -> int:
    before = trace.live
    for value in (*module.parameters(), *module.buffers()):
        trace.hold(value)
    return trace.live - before


def _spread(trace: Trace, model: LanguageModel, ranks: int) -> torch.Tensor:
    """What stands for the weights of a model that is not whole on every rank: the head of one with ranks of its own; a
    rank's share of one that is sharded or in host memory, and what is gathered ahead of its use (DeepSpeed's default
    of 50 million values, at least the largest weight)."""
    for value in model.parameters():
        trace.ignore(value)
    if model.placement == "own_ranks":
        body = {id(p) for p in model.hf.base_model.parameters()}
        head = [p for p in model.parameters() if id(p) not in body] + [output_layer(model.hf).weight]
        return torch.empty(sum(p.numel() for p in head), dtype=head[-1].dtype, device=META)
    sizes = [p.numel() for p in model.parameters()]
    share = -(-sum(sizes) // ranks) if model.placement == "sharded" else 0
    ahead = min(sum(sizes), max(50_000_000, *sizes))
    return torch.empty(share + ahead, dtype=next(model.parameters()).dtype, device=META)
