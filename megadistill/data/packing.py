"""How documents of any length become rows of one length.

All packers take documents as id sequences and yield blocks of rows: tokens [n, length] int64 and segments
[n, length] uint16, the number of the document inside its row from 1 (`pairs`: 1 for A, 2 for B), and 0 on padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

Tokens = NDArray[np.integer]
Rows = tuple[NDArray[np.int64], NDArray[np.uint16]]
Documents = Iterable[Sequence[int] | Tokens]

MIN_PIECE = 12
"""`split` drops shorter pieces, as DistilBERT does (they teach little and are mostly padding)."""

BLOCK_TOKENS = 1 << 20
"""`concat` cuts rows, and `best_fit` fills them, whenever about so many tokens are waiting."""

SHORT_PAIRS = 0.1
"""Share of the rows of `pairs` that are cut to a random shorter length, as BERT's."""


@dataclass(frozen=True)
class Frame:
    """The ids around a document; None: nothing there."""

    first: int | None
    """[CLS] or a beginning-of-sequence token."""
    last: int | None
    """[SEP] or an end-of-sequence token."""
    pad: int
    ends: frozenset[int] = frozenset()
    """Ids that end a sentence; only `pairs` looks for them."""

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


def best_fit(documents: Documents, length: int, frame: Frame) -> Iterator[Rows]:
    """Documents side by side in rows, none cut that fits into one (best-fit decreasing; Ding et al. 2024). Longer ones
    are cut into full rows, and what is left over is placed like a document."""
    waiting: list[Tokens] = []
    waiting_tokens = 0
    for document in documents:
        if len(document) == 0:
            continue
        framed = frame.around(np.asarray(document))
        waiting += [framed[start : start + length] for start in range(0, len(framed), length)]
        waiting_tokens += len(framed)
        if waiting_tokens >= BLOCK_TOKENS:
            yield _filled(waiting, length, frame.pad)
            waiting, waiting_tokens = [], 0
    if waiting:
        yield _filled(waiting, length, frame.pad)


def _filled(pieces: list[Tokens], length: int, pad: int) -> Rows:
    """Each piece, the longest first, goes into the row that it leaves least room in."""
    rows: list[list[Tokens]] = []
    by_room: list[list[int]] = [[] for _ in range(length + 1)]
    rooms = 0  # bit r: some row has room for exactly r more
    for piece in sorted(pieces, key=len, reverse=True):
        fitting = rooms >> len(piece)
        if fitting:
            room = len(piece) + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
            rows[row].append(piece)
        else:
            room, row = length, len(rows)
            rows.append([piece])
        if left := room - len(piece):
            by_room[left].append(row)
            rooms |= 1 << left
    tokens = np.full((len(rows), length), pad, dtype=np.int64)
    segments = np.zeros((len(rows), length), dtype=np.uint16)
    for row, parts in enumerate(rows):
        lengths = [len(part) for part in parts]
        tokens[row, : sum(lengths)] = np.concatenate(parts)
        segments[row, : sum(lengths)] = np.repeat(np.arange(1, len(parts) + 1), lengths)
    return tokens, segments


def pairs(documents: Documents, length: int, frame: Frame) -> Iterator[Rows]:
    """[CLS] A [SEP] B [SEP] (BERT): consecutive sentences of one document, cut into A and B at the end of a random
    sentence. A row ends with a sentence where one ends in its second half, and the next row goes on behind it, so no
    token is lost but pieces shorter than MIN_PIECE at the end of a document. B always follows A: nothing here learns
    to tell the next sentence from another. What is random is decided by the document alone."""
    room = length - frame.size - (frame.last is not None)
    shortest = max(2, min(MIN_PIECE, room))
    ends = np.array(sorted(frame.ends), dtype=np.int64)
    for document in documents:
        ids = np.asarray(document).astype(np.int64)
        is_end = np.isin(ids, ends)
        rows: list[tuple[NDArray[np.int64], NDArray[np.uint16]]] = []
        start = 0
        while len(ids) - start >= shortest:
            draws = _draws(ids[start : start + room], len(rows))
            most = room if draws[0] >= SHORT_PAIRS else shortest + int(draws[1] * (room - shortest + 1))
            stop = min(start + most, len(ids))
            if stop < len(ids):
                late = np.flatnonzero(is_end[start + (stop - start) // 2 : stop])
                stop = start + (stop - start) // 2 + int(late[-1]) + 1 if late.size else stop
            rows.append(_pair(ids[start:stop], is_end[start:stop], draws[2], length, frame))
            start = stop
        if rows:
            yield np.stack([tokens for tokens, _ in rows]), np.stack([segments for _, segments in rows])


def _pair(
    ids: NDArray[np.int64], is_end: NDArray[np.bool_], draw: float, length: int, frame: Frame
) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
    cuts = np.flatnonzero(is_end[:-1]) + 1
    cut = int(cuts[int(draw * len(cuts))]) if cuts.size else 1 + int(draw * (len(ids) - 1))
    a = frame.around(ids[:cut])
    b = frame.around(ids[cut:])[frame.first is not None :]
    tokens = np.full(length, frame.pad, dtype=np.int64)
    segments = np.zeros(length, dtype=np.uint16)
    tokens[: len(a) + len(b)] = np.concatenate([a, b])
    segments[: len(a)], segments[len(a) : len(a) + len(b)] = 1, 2
    return tokens, segments


def _draws(ids: NDArray[np.int64], row: int) -> list[float]:
    """Three numbers in [0, 1) for the row of a document that begins with these tokens."""
    data = ids.tobytes()
    return [xxhash.xxh3_64_intdigest(data, seed=3 * row + number) / 2**64 for number in range(3)]


Packing = Literal["concat", "best_fit", "split", "pairs"]
PACKERS: dict[Packing, Callable[[Documents, int, Frame], Iterator[Rows]]] = {
    "concat": concat,
    "best_fit": best_fit,
    "split": split,
    "pairs": pairs,
}
