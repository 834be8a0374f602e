"""A task's model, scored by the task's own metrics on its dev parts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megadistill.core.files import atomic_write
from megadistill.models.scoring import outputs
from megadistill.models.signals import LanguageModel
from megadistill.tasks.base import Examples, Task

TOKENS_AT_ONCE = 8192
"""Of a batch, padding included."""


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
    lengths = rows.lengths
    by_length, wide = np.argsort(lengths, kind="stable"), rows.choices
    found: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(lengths)
    start = 0
    while start < len(by_length):
        stop = start + 1
        while stop < len(by_length) and (stop + 1 - start) * wide * lengths[by_length[stop]] <= TOKENS_AT_ONCE:
            stop += 1
        chosen = by_length[start:stop]
        batch = rows.take(chosen).to(device)
        for row, answer in zip(chosen, outputs(model.signals(batch, frozenset()), batch).cpu().numpy(), strict=True):
            found[row] = answer[: lengths[row]] if batch.spans is not None else answer
        start = stop
    return found
