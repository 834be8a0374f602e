"""How documents of any length become rows of one length.

Both packers take documents as id sequences and yield blocks of rows: tokens [n, length] int64 and segments
[n, length] uint16, the number of the document inside its row from 1, and 0 on padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.integer]
Rows = tuple[NDArray[np.int64], NDArray[np.uint16]]
Documents = Iterable[Sequence[int] | Tokens]

MIN_PIECE = 12
"""`split` drops shorter pieces, as DistilBERT does (they teach little and are mostly padding)."""

BLOCK_TOKENS = 1 << 20
"""`concat` cuts rows whenever about so many tokens are waiting."""


@dataclass(frozen=True)
class Frame:
    """The ids around a document; None: nothing there."""

    first: int | None
    """[CLS] or a beginning-of-sequence token."""
    last: int | None
    """[SEP] or an end-of-sequence token."""
    pad: int

    def around(self, tokens: Tokens) -> Tokens:
        first = [] if self.first is None else [self.first]
        last = [] if self.last is None else [self.last]
        return np.concatenate([first, tokens, last]).astype(np.int64)

    @property
    def size(self) -> int:
        return (self.first is not None) + (self.last is not None)


def concat(documents: Documents, length: int, frame: Frame) -> Iterator[Rows]:
    """All documents one after another, cut wherever a row is full; only the very last row is padded."""
    waiting: list[Tokens] = []
    waiting_tokens = 0
    rest: Tokens = np.empty(0, dtype=np.int64)
    rest_document: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def cut(*, last: bool) -> Rows | None:
        """Whole rows of what waits; what is left over opens the next block."""
        nonlocal rest, rest_document
        tokens = np.concatenate([rest, *waiting]).astype(np.int64)
        first = rest_document[-1] + 1 if rest_document.size else 0
        lengths = [len(document) for document in waiting]
        document = np.concatenate([rest_document, np.repeat(np.arange(first, first + len(lengths)), lengths)])
        num_rows = len(tokens) // length
        if last and len(tokens) % length:
            num_rows += 1
            padding = num_rows * length - len(tokens)
            tokens = np.pad(tokens, (0, padding), constant_values=frame.pad)
            document = np.pad(document, (0, padding), constant_values=-1)
        used = num_rows * length
        rest, rest_document = tokens[used:], document[used:]
        if not num_rows:
            return None
        grid = document[:used].reshape(num_rows, length)
        segments = np.where(grid < 0, 0, grid - grid[:, :1] + 1).astype(np.uint16)
        return tokens[:used].reshape(num_rows, length), segments

    for ids in documents:
        if len(ids) == 0:
            continue
        waiting.append(frame.around(np.asarray(ids)))
        waiting_tokens += len(ids)
        if waiting_tokens >= BLOCK_TOKENS:
            if (block := cut(last=False)) is not None:
                yield block
            waiting, waiting_tokens = [], 0
    if (block := cut(last=True)) is not None:
        yield block


def split(documents: Documents, length: int, frame: Frame) -> Iterator[Rows]:
    """Each document cut into framed pieces of at most `length`, one padded piece a row (as DistilBERT)."""
    body = length - frame.size
    shortest = min(MIN_PIECE, body)
    for document in documents:
        ids = np.asarray(document)
        pieces = [ids[start : start + body] for start in range(0, len(ids), body)]
        pieces = [frame.around(piece) for piece in pieces if len(piece) >= shortest]
        if not pieces:
            continue
        tokens = np.full((len(pieces), length), frame.pad, dtype=np.int64)
        segments = np.zeros((len(pieces), length), dtype=np.uint16)
        for row, piece in enumerate(pieces):
            tokens[row, : len(piece)] = piece
            segments[row, : len(piece)] = 1
        yield tokens, segments


Packing = Literal["concat", "split"]
PACKERS: dict[Packing, Callable[[Documents, int, Frame], Iterator[Rows]]] = {"concat": concat, "split": split}
