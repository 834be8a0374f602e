"""A run's student, and its teacher, on the run's own held-out text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from megadistill.core.dist import World
from megadistill.core.types import Batch
from megadistill.data.stream import held_out_batches
from megadistill.models.scoring import RowScores, score_rows
from megadistill.models.signals import LanguageModel
from megadistill.run.config import RunConfig

BATCH_ROWS = 32


@dataclass(frozen=True)
class Table:
    """Per-row sums over all scored rows, [rows] float64 each."""

    nll: torch.Tensor
    targets: torch.Tensor
    agreed: torch.Tensor
    correct: torch.Tensor

    @property
    def loss(self) -> float:
        """Nats per target."""
        return float(self.nll.sum() / self.targets.sum())


def score(model: LanguageModel, teacher: LanguageModel | None, batches: Any) -> Table:
    """Score a model on batches, row by row."""
    model.eval()
    rows: list[RowScores] = []
    device = next(model.parameters()).device
    with torch.no_grad():
        for batch in batches:
            batch = batch.to(device)
            signals = teacher.signals(batch, frozenset()) if teacher is not None else None
            rows.append(score_rows(model.signals(batch, frozenset()), signals, batch))
    return Table(*(torch.cat([getattr(r, name) for r in rows]) for name in ("nll", "targets", "agreed", "correct")))


def heldout(config: RunConfig, student: LanguageModel, teacher: LanguageModel | None) -> dict[str, Any]:
    """Scores over all held-out rows (at most `evaluate.rows` if that is more than training looked at).

    Returns:
        flat numbers, and `rows`: each row's summed nll and number of targets, for paired comparisons.
    """
    batches: list[Batch] = list(held_out_batches(config.data, BATCH_ROWS, config.seed, World()))
    ours = score(student, teacher, batches)
    result: dict[str, Any] = summary(ours, with_teacher=teacher is not None)
    result["num_parameters"] = num_parameters(student)
    if teacher is not None:
        theirs = score(teacher, None, batches)
        result |= {f"teacher_{key}": value for key, value in summary(theirs, with_teacher=False).items()}
        result["teacher_num_parameters"] = num_parameters(teacher)
    result["rows"] = {"nll": ours.nll.tolist(), "targets": ours.targets.tolist()}
    return result


def summary(table: Table, with_teacher: bool) -> dict[str, float]:
    """What a table says in total."""
    targets = float(table.targets.sum())
    result = {
        "loss": table.loss,
        "perplexity": math.exp(table.loss),
        "accuracy": float(table.correct.sum()) / targets,
        "num_targets": targets,
    }
    if with_teacher:
        result["agreement_top1"] = float(table.agreed.sum()) / targets
    return result


def num_parameters(model: LanguageModel) -> int:
    """Values in all parameters, tied ones once."""
    return sum(p.numel() for p in model.parameters())
