"""What a task is: examples with answers, the head that answers them, and how answers are scored.

A task goes through the one training loop. Its examples are rows as a corpus's are, in the same order law
(`data/order`), batches, checkpoints and resume; what differs is what a row must be answered with. A class is the label
of the row's position 0, so the objectives on distributions (`hard_ce`, `soft_ce`, `logits_mse`, with `scope: targets`)
compare classes, and those on states and attention (`pkd`, `hidden_mse`, `attention_mse`, `cosine`) need not know of it.
A number is in `Batch.values` (`value_mse`), a span of positions in `Batch.spans` (`span_ce`, `span_soft_ce`). Which of
several texts is right (`choice`) is a class whose logits are the scores of as many rows. An image is in `Batch.pixels`,
and its row is the one position that its class is the label of. Counts are known from the batch as ever: one target, or
one sequence, per row; an augmented row has a question and no label, so it is `asked`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

import megadistill.tasks.augment
from megadistill.core.schema import OneOf, Strict, discover
from megadistill.core.types import AnswerKind, Batch
from megadistill.data.rows import Rows
from megadistill.models.heads import TaskHead
from megadistill.tasks.augment.base import Augment
from megadistill.tasks.encoding import Example, some

discover(megadistill.tasks.augment)  # the union below needs every kind imported first


class Examples(Rows, Protocol):
    """Rows of a task."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[examples] the positions of each one's longest row; of an image, those that a transformer would cut it
        into."""
        ...

    @property
    def choices(self) -> int:
        """How many rows, one after another, are one example."""
        ...

    def take(self, examples: NDArray[np.int64]) -> Batch:
        """The examples of these numbers, with nothing random about them."""
        ...


class Opened(Protocol):
    """One part of a task: its rows, and the judge of answers to them."""

    @property
    def rows(self) -> Examples: ...

    def score(self, outputs: list[NDArray[np.float32]]) -> tuple[dict[str, float], list[Any]]:
        """Score the outputs of a model.

        Args:
            outputs: by example: logits [classes] or [choices], a rating [1], or start and end logits [tokens, 2].

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

    def files(self) -> dict[str, list[str]]:
        """Field -> the files, folders or patterns that examples are read from."""
        return {}

    def look(self, part: str) -> None:
        """Read a part as far as that takes seconds; nothing is encoded.

        Raises:
            UserError: as `open`.
        """

    def known_head(self, here: bool) -> TaskHead | None:
        """`head`, as far as it is known at once.

        Args:
            here: whether its files are; else it may not read them.
        """
        return self.head

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
    augment: OneOf[Augment] | None = None
    """Train on variants of the examples too, which the teacher answers; for tasks of a class or a number."""

    @model_validator(mode="after")
    def _texts_are_what_is_augmented(self) -> TokenTask:
        if self.augment is not None and self.asks not in ("label", "value"):
            raise ValueError(f"augment: it changes texts with a class or a number; {self.kind} asks for a {self.asks}")
        return self

    def look(self, part: str) -> None:
        if self.asks in ("label", "value"):
            self.examples(part)

    def examples(self, part: str) -> list[Example]:
        """All examples of a part, in the file's order, where a row has a class or a number."""
        raise NotImplementedError

    @property
    def chosen(self) -> list[Example]:
        """The examples to train on, where a row has a class or a number."""
        return some(self.examples("train"), self.max_train_examples)
