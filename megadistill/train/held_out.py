"""How the student does on text it never sees: loss, perplexity, and agreement with its teacher."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from megadistill.core.dist import sum_over_ranks
from megadistill.core.types import Batch
from megadistill.engine.deepspeed import Engine
from megadistill.teachers.base import Source


def evaluate(
    engine: Engine, teacher: Source | None, batches: Iterable[Batch], device: torch.device
) -> dict[str, float]:
    """Scores over all ranks' batches (every rank must bring the same number).

    Returns:
        heldout/loss (nats per target), heldout/perplexity, heldout/accuracy, and heldout/agreement_top1 when there
        is a teacher.
    """
    engine.module.eval()
    totals = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        for batch in batches:
            batch = batch.to(device)
            signals = teacher.signals(batch, engine.module.needs) if teacher is not None else None
            scores = engine.forward(batch, signals, None)
            totals += torch.stack([s.sum() for s in (scores.nll, scores.targets, scores.agreed, scores.correct)])
    engine.module.train()
    nll, targets, agreed, correct = sum_over_ranks(totals).tolist()
    loss = nll / max(targets, 1)
    result = {
        "heldout/loss": loss,
        "heldout/perplexity": math.exp(loss),
        "heldout/accuracy": correct / max(targets, 1),
    }
    if teacher is not None:
        result["heldout/agreement_top1"] = agreed / max(targets, 1)
    return result
