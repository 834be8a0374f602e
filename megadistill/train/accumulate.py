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
from megadistill.train.step import refuse_uneven_gradients
from megadistill.train.stragglers import Stopwatch


def accumulate(
    engine: Engine,
    teacher: Source | None,
    micro_batches: Sequence[Batch],
    counts: Tensor,
    *,
    step: int,
    seed: int,
    check_ranks: bool,
    ask_teacher: bool,
    stopwatch: Stopwatch,
) -> tuple[Tensor, Tensor]:
    """Forward and backward of this rank's micro-batches.

    Args:
        engine: wraps a `DistillStep`.
        counts: [len(COUNT_KINDS)] of the whole global batch, known before any forward.
        check_ranks: refuse to go on if ranks would train different parameters.
        ask_teacher: also compute the teacher's own loss, on the last micro-batch.
        stopwatch: times the forward passes.

    Returns:
        the sums of every objective on this rank [num objectives], and the teacher's loss as
        (sum over targets, number of targets) [2], zeros when not asked for.
    """
    module, device = engine.module, engine.device
    rank, size = rank_and_size()
    # DeepSpeed divides by ranks and micro-batches; a count of 0 goes with a sum of 0
    shares = (size * len(micro_batches) / counts.clamp(min=1)).float().to(device)
    sums: list[Tensor] = []
    for index, on_cpu in enumerate(micro_batches):
        batch = on_cpu.to(device)
        seeds.reseed(seed, "dropout", step, index, rank)
        stopwatch.start()
        signals = teacher.signals(batch, module.needs) if teacher is not None else None
        loss, parts = engine.forward(batch, signals, shares, step)
        stopwatch.stop()
        if check_ranks:
            refuse_uneven_gradients(loss, module, step, index)
        engine.backward(loss)
        sums.append(parts)
    theirs = _own_loss(signals, batch) if ask_teacher and signals is not None else torch.zeros(2)
    return torch.stack(sums).sum(0), theirs


@torch.no_grad()
def _own_loss(signals: Signals, batch: Batch) -> Tensor:
    if batch.values is not None or batch.spans is not None:
        return score_rows(signals, None, batch).totals()[:2].float().to(batch.ids.device)
    labels = batch.labels.flatten()[batch.targets]
    total = signals.head(lambda hidden, weight, bias: linear_ce(hidden, weight, bias, labels), batch.targets)
    return torch.stack([total.float(), torch.full_like(total, len(labels), dtype=torch.float32)])
