"""Rows with one answer each, a class or a number, and how answers to them are scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megadistill.data.tokenization import load_tokenizer
from megadistill.models.heads import TaskHead
from megadistill.tasks import metrics
from megadistill.tasks.augment.rows import augmented
from megadistill.tasks.base import TokenTask
from megadistill.tasks.encoding import Encoded, encode
from megadistill.tasks.rows import TaskRows


def open_labelled(task: TokenTask, part: str, measured: Sequence[str]) -> Labelled:
    """A part of a task of such rows; `train` with its variants, which come behind all examples."""
    examples = task.chosen if part == "train" else task.examples(part)
    head, tokenizer, length = task.head, load_tokenizer(task.tokenizer), task.sequence_length
    if part == "train" and task.augment is not None:
        encoded = augmented(task.augment, examples, head, tokenizer, length)
    else:
        encoded = encode(examples, head.kind, head.outputs, tokenizer, length)
    return Labelled(encoded, head, measured, length)


class Labelled:
    """One part of a task of such rows; one row an example."""

    def __init__(self, encoded: Encoded, head: TaskHead, measured: Sequence[str], length: int) -> None:
        """Args:
        measured: names in `metrics.METRICS`.
        """
        self.encoded, self.head, self.measured = encoded, head, measured
        self.rows = TaskRows(encoded, length)

    def score(self, outputs: list[NDArray[np.float32]]) -> tuple[dict[str, float], list[Any]]:
        answers = np.stack(outputs)
        if self.head.kind == "value":
            predicted: NDArray[Any] = answers[:, 0].astype(np.float64)
            shown: list[Any] = predicted.tolist()
        else:
            predicted = answers.argmax(-1)
            shown = [self.head.names[number] for number in predicted]
        truth = self.encoded.answers if self.head.kind == "value" else self.encoded.answers.astype(np.int64)
        return {name: metrics.METRICS[name](truth, predicted) for name in self.measured}, shown
