"""A run's student, and its teacher, on the run's own held-out text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from megadistill.core.dist import World
from megadistill.core.types import Batch, Needs
from megadistill.data.stream import HeldOut
from megadistill.models import profile
from megadistill.models.scoring import RowScores, joined, row_scores, score_rows, summary
from megadistill.models.signals import LanguageModel
from megadistill.run.config import RunConfig
from megadistill.teachers.base import Source

BATCH_ROWS = 32
ANSWER = Needs(teacher=True)
"""What is read of a model: its head."""


@torch.no_grad()
def heldout(config: RunConfig, student: Source, teacher: Source | None, rows: int | None = None) -> dict[str, Any]:
    """Scores over the held-out rows; training itself looks at `evaluate.rows` of them only.

    Args:
        teacher: of several models, scored as the one teacher that they are together; `teacher_num_parameters` is of
            them all.
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
    device = next(student.models[0].parameters()).device
    for batch in text.batches(BATCH_ROWS, config.seed, World(), rows):
        batch = batch.to(device)
        answer = None if teacher is None else teacher.signals(batch, ANSWER)
        mine, its, kl = profile.compare(student.signals(batch, ANSWER), answer, batch)
        sums += profile.sums(mine, its, kl, batch.labels.flatten()[batch.targets], tenth)
        ours.append(row_scores(batch, mine.nll, mine.best, None if its is None else its.best))
        if its is not None:
            theirs.append(row_scores(batch, its.nll, its.best, None))
    found = joined(ours)
    result: dict[str, Any] = totals(found, with_teacher=teacher is not None)
    result["num_parameters"] = num_parameters(*student.models)
    if teacher is not None:
        result |= {f"teacher_{key}": value for key, value in totals(joined(theirs), with_teacher=False).items()}
        result["teacher_num_parameters"] = num_parameters(*teacher.models)
    result |= profile.described(sums, tenth, with_teacher=teacher is not None)
    result["rows"] = {"nll": found.nll.tolist(), "targets": found.targets.tolist()}
    return result


@torch.no_grad()
def score(source: Source, batches: Iterable[Batch]) -> RowScores:
    """Score a model, or several that answer as one, on batches, row by row, on the device they are on."""
    device = next(source.models[0].parameters()).device
    moved = (batch.to(device) for batch in batches)
    return joined([score_rows(source.signals(batch, ANSWER), None, batch) for batch in moved])


def totals(scores: RowScores, with_teacher: bool) -> dict[str, float]:
    """`summary` of all rows, and over how many targets it is."""
    return {**summary(scores.totals(), with_teacher), "num_targets": float(scores.targets.sum())}


def num_parameters(*models: LanguageModel) -> int:
    """Values in all parameters, those tied within a model once."""
    return sum(p.numel() for model in models for p in model.parameters())
