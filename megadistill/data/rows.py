"""What a stream draws from: numbered rows, whatever they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from megadistill.core.types import Batch
from megadistill.data.order import Order, Places
from megadistill.data.staging import Staging

I64 = NDArray[np.int64]


class Rows(Protocol):
    """One part (train or held-out) of the corpora (`data.stream.Part`), or of a task's examples (`tasks.rows`)."""

    @property
    def sizes(self) -> list[int]:
        """How many rows each corpus has; a row is known by its corpus's number and its own."""
        ...

    @property
    def sequence_length(self) -> int:
        """Tokens of a row, at most."""
        ...

    @property
    def staging(self) -> Staging | None: ...

    @property
    def counts(self) -> I64 | None:
        """How often each token, or each class of a task, occurs in the training rows; None where that is not known."""
        ...

    def order(self, seed: int, skips: Sequence[tuple[int, int]]) -> Order:
        """In which order training takes them.

        Raises:
            UserError: there are none.
        """
        ...

    def fingerprint(self, seed: int) -> str:
        """Equal when every step yields equal global batches at equal global_size and skips."""
        ...

    def batch(self, places: Places, seed: int, purpose: str) -> Batch:
        """The rows at `places`, with whatever is random about them drawn for (seed, purpose, corpus, epoch, row)."""
        ...

    def micro_batches(self, places: Places, size: int, seed: int, purpose: str) -> list[Batch]:
        """The same rows, `size` at a time."""
        ...

    def fetch(self, places: Places) -> None:
        """Bring near what these rows are read from."""
        ...
