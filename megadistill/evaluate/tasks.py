"""A task's model, scored by the task's own metrics on its dev parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megadistill.core.files import atomic_write
from megadistill.core.types import Batch
from megadistill.models.scoring import outputs
from megadistill.models.signals import LanguageModel
from megadistill.tasks.answering import answered
from megadistill.tasks.base import Examples, Task


def score_task(task: Task, model: LanguageModel, folder: Path | None = None) -> dict[str, Any]:
    """Score a model on all dev parts.

    Args:
        folder: receives `predictions-<part>.jsonl`, one line an example; None: they are not kept.

    Returns:
        `<part>/<metric>`, and `score`, the one number that stands for the task in tables.
    """
    scores: dict[str, dict[str, float]] = {}
    for part in task.dev_parts:
        opened = task.open(part)
        scores[part], shown = opened.score(answers(model, opened.rows))
        if folder is not None:
            with atomic_write(folder / f"predictions-{part}.jsonl") as handle:
                handle.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in shown)
    flat = {f"{part}/{name}": value for part, values in scores.items() for name, value in values.items()}
    return {**flat, "score": task.primary(scores)}


@torch.no_grad()
def answers(model: LanguageModel, rows: Examples) -> list[NDArray[np.float32]]:
    """What the model answers to each example, in their order: [classes], [choices], [1], or [tokens of the row, 2]."""
    model.eval()
    device = next(model.parameters()).device

    def answer(batch: Batch) -> NDArray[np.float32]:
        given = batch.to(device)
        return np.asarray(outputs(model.signals(given, frozenset()), given).cpu().numpy())

    return answered(rows, answer)
