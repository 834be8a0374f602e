"""A model's answers to every example of a task's part, in batches of about equal lengths."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from megadistill.core.types import Batch
from megadistill.tasks.base import Examples

TOKENS_AT_ONCE = 8192
"""Of a batch, padding included."""


def answered(rows: Examples, answer: Callable[[Batch], NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """By example, in their order: [classes], [choices], [1], or [tokens of the row, 2].

    Args:
        answer: [examples, classes], [examples, choices], [examples, 1], or [examples, positions, 2] of a batch.
    """
    lengths = rows.lengths
    by_length, wide = np.argsort(lengths, kind="stable"), rows.choices
    found: list[NDArray[np.float32]] = [np.zeros(0, np.float32)] * len(lengths)
    start = 0
    while start < len(by_length):
        stop = start + 1
        while stop < len(by_length) and (stop + 1 - start) * wide * lengths[by_length[stop]] <= TOKENS_AT_ONCE:
            stop += 1
        chosen = by_length[start:stop]
        batch = rows.take(chosen)
        for row, given in zip(chosen, answer(batch), strict=True):
            found[row] = given[: lengths[row]] if batch.spans is not None else given
        start = stop
    return found
