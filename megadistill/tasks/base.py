"""What a task is: examples with answers, the head that answers them, and how answers are scored.

A task goes through the one training loop. Its examples are rows as a corpus's are, in the same order law
(`data/order`), batches, checkpoints and resume; what differs is what a row must be answered with. A class is the label
of the row's position 0, so the objectives on distributions (`hard_ce`, `soft_ce`, `logits_mse`, with `scope: targets`)
compare classes, and those on states and attention (`pkd`, `hidden_mse`, `attention_mse`, `cosine`) need not know of it.
A number is in `Batch.values` (`value_mse`), a span of positions in `Batch.spans` (`span_ce`, `span_soft_ce`). An image
is in `Batch.pixels`, and its row is the one position that its class is the label of. Counts are known from the batch as
ever: one target, or one sequence, per example.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from megadistill.core.schema import Strict
from megadistill.core.types import AnswerKind, Batch
from megadistill.data.rows import Rows
from megadistill.models.heads import TaskHead


class Examples(Rows, Protocol):
    """Rows of a task; one or several for each example."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[rows] the positions of each; of an image, those that a transformer would cut it into."""
        ...

    def take(self, rows: NDArray[np.int64]) -> Batch:
        """The rows of these numbers, with nothing random about them."""
        ...


class Opened(Protocol):
    """One part of a task: its rows, and the judge of answers to them."""

    @property
    def rows(self) -> Examples: ...

    def score(self, outputs: list[NDArray[np.float32]]) -> tuple[dict[str, float], list[Any]]:
        """Score the outputs of a model.

        Args:
            outputs: by row: logits [classes], a rating [1], or start and end logits [tokens of the row, 2].

        Returns:
            metrics by name, in [-1, 1] or, for SQuAD, per cent as its script gives them; and for each example what the
            model answered, ready for JSON.
        """
        ...


class Task(Strict):
    """Base of every task's config."""

    kind: str
    max_train_examples: int | None = Field(None, gt=0)
    """Train on so many only, chosen at random once and for all; None: on all."""

    @property
    def asks(self) -> AnswerKind:
        """What kind of answer a row has; known without the data."""
        return "label"

    @property
    def head(self) -> TaskHead:
        """What it asks a model for; may read the data."""
        raise NotImplementedError

    @property
    def dev_parts(self) -> tuple[str, ...]:
        """What scores are measured on; the first is looked at during training too."""
        return ("dev",)

    def open(self, part: str) -> Opened:
        """Read and encode `train` or one of `dev_parts`.

        Raises:
            UserError: a file is missing, or says what it must not; names the file and the line.
        """
        raise NotImplementedError

    def primary(self, scores: dict[str, dict[str, float]]) -> float:
        """The one number that stands for the task in tables, out of each dev part's metrics: their mean."""
        return float(np.mean([value for part in self.dev_parts for value in scores[part].values()]))


class TokenTask(Task):
    """Base of every config of a task on text."""

    tokenizer: str
    """A folder or file, or a name on the hub, as for `data.tokenizer`; it must be the teacher's and the student's."""
    sequence_length: int = Field(128, ge=8, le=65535)
    """Tokens of a row at most, [CLS] and [SEP] included."""
