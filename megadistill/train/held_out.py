"""How the student does on rows it never sees: loss, perplexity or accuracy, and agreement with its teacher."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from megadistill.core.dist import sum_over_ranks
from megadistill.core.types import Batch
from megadistill.engine.deepspeed import Engine
from megadistill.models.scoring import summary
from megadistill.teachers.base import Source


def evaluate(
    engine: Engine, teacher: Source | None, batches: Iterable[Batch], device: torch.device
) -> dict[str, float]:
    """Scores over all ranks' batches (every rank must bring the same number).

    Returns:
        as heldout/NAME what `models.scoring.summary` names.
    """
    engine.module.eval()
    totals = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        for batch in batches:
            batch = batch.to(device)
            signals = teacher.signals(batch, engine.module.needs) if teacher is not None else None
            totals += engine.forward(batch, signals, None).totals()
    engine.module.train()
    scores = summary(sum_over_ranks(totals), with_teacher=teacher is not None, asked=engine.module.student.answers)
    return {f"heldout/{name}": value for name, value in scores.items()}
