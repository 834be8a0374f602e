"""A run's student, and its teacher, on the run's own held-out text."""

from __future__ import annotations

from typing import Any

import torch

from megadistill.core.dist import World
from megadistill.core.types import Batch
from megadistill.data.stream import held_out_batches
from megadistill.models.scoring import RowScores, score_rows, summary
from megadistill.models.signals import LanguageModel
from megadistill.run.config import RunConfig

BATCH_ROWS = 32


def score(model: LanguageModel, teacher: LanguageModel | None, batches: Any) -> RowScores:
    """Score a model on batches, row by row, on the device it is on."""
    model.eval()
    rows: list[RowScores] = []
    device = next(model.parameters()).device
    with torch.no_grad():
        for batch in batches:
            batch = batch.to(device)
            signals = teacher.signals(batch, frozenset()) if teacher is not None else None
            rows.append(score_rows(model.signals(batch, frozenset()), signals, batch))
    return RowScores(*(torch.cat([getattr(r, name) for r in rows]) for name in ("nll", "targets", "agreed", "correct")))


def heldout(
    config: RunConfig, student: LanguageModel, teacher: LanguageModel | None, rows: int | None = None
) -> dict[str, Any]:
    """Scores over the held-out rows; training itself looks at `evaluate.rows` of them only.

    Args:
        rows: at most so many, the first ones of the order that training takes them in; None: all.

    Returns:
        flat numbers, and `rows`: each row's summed nll and number of targets, for paired comparisons.
    """
    batches: list[Batch] = list(held_out_batches(config.text, BATCH_ROWS, config.seed, World(), rows))
    ours = score(student, teacher, batches)
    result: dict[str, Any] = totals(ours, with_teacher=teacher is not None)
    result["num_parameters"] = num_parameters(student)
    if teacher is not None:
        theirs = score(teacher, None, batches)
        result |= {f"teacher_{key}": value for key, value in totals(theirs, with_teacher=False).items()}
        result["teacher_num_parameters"] = num_parameters(teacher)
    result["rows"] = {"nll": ours.nll.tolist(), "targets": ours.targets.tolist()}
    return result


def totals(scores: RowScores, with_teacher: bool) -> dict[str, float]:
    """`summary` of all rows, and over how many targets it is."""
    return {**summary(scores.totals(), with_teacher), "num_targets": float(scores.targets.sum())}


def num_parameters(model: LanguageModel) -> int:
    """Values in all parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())
