"""How one global batch becomes one gradient, however it is split over ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megadistill.core import seeds
from megadistill.core.together import rank_and_size
from megadistill.core.types import Batch, Signals
from megadistill.engine.deepspeed import Engine
from megadistill.kernels.head_losses import linear_ce
from megadistill.models.scoring import score_rows
from megadistill.teachers.base import Source
from megadistill.train.stragglers import Stopwatch
from megadistill.train.uneven import refuse_uneven_gradients


def accumulate(
    engine: Engine,
    teacher: Source | None,
    micro_batches: Sequence[Batch],
    counts: Tensor,
    *,
    step: int,
    seed: int,
    check_ranks: bool,
    stopwatch: Stopwatch,
    watch: bool = False,
    share_gradients: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward and backward of this rank's micro-batches.

    Args:
        engine: wraps a `DistillStep`.
        counts: [len(COUNT_KINDS)] of the whole global batch, known before any forward.
        check_ranks: refuse to go on if ranks would train different parameters.
        stopwatch: times the forward passes.
        watch: also look at what is logged and not learnt from, on the last micro-batch: the teacher's own loss, and
            what objectives tell beside their sums.
        share_gradients: also compute how the student's gradient divides among the objectives, there too.

    Returns:
        the sums of every objective on this rank [num objectives], and what was looked at: log name -> [2], a sum and
        the number it is to be divided by, both to be added up over ranks.
    """
    module, device = engine.module, engine.device
    engine.accumulate_over(len(micro_batches))
    rank, size = rank_and_size()
    # DeepSpeed divides by ranks and micro-batches; a count of 0 goes with a sum of 0
    shares = (size * len(micro_batches) / counts.clamp(min=1)).float().to(device, non_blocking=True)
    sums: list[Tensor] = []
    for index, on_cpu in enumerate(micro_batches):
        batch, last = on_cpu.to(device), index == len(micro_batches) - 1
        seeds.reseed(seed, "dropout", step, index, rank)
        stopwatch.start()
        signals = teacher.signals(batch, module.needs) if teacher is not None else None
        loss, parts = engine.forward(batch, signals, shares, step, watch and last)
        stopwatch.stop()
        if check_ranks:
            refuse_uneven_gradients(loss, module, step, index)
        engine.backward(loss)
        sums.append(parts)
    seen: dict[str, Tensor] = {}
    if watch:
        seen |= {f"train/{name}": value for name, value in module.watched.items()}
        if signals is not None and signals.kept is None:
            seen["teacher/loss"] = _own_loss(signals, batch)
    if share_gradients:
        seeds.reseed(seed, "dropout", step, index, rank)  # the same dropout as above
        norms = module.gradient_norms(batch, signals, shares, step)
        labels = (part.label for part in module.mixture.parts)
        seen |= {
            f"train/gradient_share/{label}": torch.stack([norm, norms.sum()])
            for label, norm in zip(labels, norms, strict=True)
        }
    return torch.stack(sums).sum(0), seen


@torch.no_grad()
def _own_loss(signals: Signals, batch: Batch) -> Tensor:
    if batch.values is not None or batch.spans is not None:
        return score_rows(signals, None, batch).totals()[:2].float().to(batch.ids.device)
    labels = batch.labels.flatten()[batch.targets]
    total = signals.head(lambda hidden, weight, bias: linear_ce(hidden, weight, bias, labels), batch.targets)
    return torch.stack([total.float(), torch.full_like(total, len(labels), dtype=torch.float32)])
