"""A run's student, and its teacher, on the run's own held-out text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from megadistill.core.dist import World
from megadistill.core.types import Batch
from megadistill.data.stream import HeldOut
from megadistill.models import profile
from megadistill.models.scoring import RowScores, joined, row_scores, score_rows, summary
from megadistill.models.signals import LanguageModel
from megadistill.run.config import RunConfig

BATCH_ROWS = 32


@torch.no_grad()
def heldout(
    config: RunConfig, student: LanguageModel, teacher: LanguageModel | None, rows: int | None = None
) -> dict[str, Any]:
    """Scores over the held-out rows; training itself looks at `evaluate.rows` of them only.

    Args:
        rows: at most so many, the first ones of the order that training takes them in; None: all.

    Returns:
        flat numbers; calibration, and losses by the target's frequency (`models.profile.described`); and `rows`: each
        row's summed nll and number of targets, for paired comparisons.
    """
    text = HeldOut(config.text)
    assert text.part.counts is not None  # `prepare` counts
    tenth = profile.tenths(torch.from_numpy(text.part.counts))
    sums = torch.zeros(profile.SUMS, profile.GROUPS, dtype=torch.float64)
    ours, theirs = [], []
    device = next(student.parameters()).device
    for model in filter(None, (student, teacher)):
        model.eval()
    for batch in text.batches(BATCH_ROWS, config.seed, World(), rows):
        batch = batch.to(device)
        answer = None if teacher is None else teacher.signals(batch, frozenset())
        mine, its, kl = profile.compare(student.signals(batch, frozenset()), answer, batch)
        sums += profile.sums(mine, its, kl, batch.labels.flatten()[batch.targets], tenth)
        ours.append(row_scores(batch, mine.nll, mine.best, None if its is None else its.best))
        if its is not None:
            theirs.append(row_scores(batch, its.nll, its.best, None))
    found = joined(ours)
    result: dict[str, Any] = totals(found, with_teacher=teacher is not None)
    result["num_parameters"] = num_parameters(student)
    if teacher is not None:
        result |= {f"teacher_{key}": value for key, value in totals(joined(theirs), with_teacher=False).items()}
        result["teacher_num_parameters"] = num_parameters(teacher)
    result |= profile.described(sums, tenth, with_teacher=teacher is not None)
    result["rows"] = {"nll": found.nll.tolist(), "targets": found.targets.tolist()}
    return result


@torch.no_grad()
def score(model: LanguageModel, batches: Iterable[Batch]) -> RowScores:
    """Score a model on batches, row by row, on the device it is on."""
    model.eval()
    device = next(model.parameters()).device
    moved = (batch.to(device) for batch in batches)
    return joined([score_rows(model.signals(batch, frozenset()), None, batch) for batch in moved])


def totals(scores: RowScores, with_teacher: bool) -> dict[str, float]:
    """`summary` of all rows, and over how many targets it is."""
    return {**summary(scores.totals(), with_teacher), "num_targets": float(scores.targets.sum())}


def num_parameters(model: LanguageModel) -> int:
    """Values in all parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())
