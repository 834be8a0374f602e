"""How examples become framed rows of ids: [CLS] A [SEP] or [CLS] A [SEP] B [SEP]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megadistill.core.errors import UserError
from megadistill.core.seeds import derive
from megadistill.core.types import AnswerKind
from megadistill.data.tokenization import SpecialIds, Tokenizer

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """One text, or pair of texts, and the answer."""

    where: str
    """FILE:LINE that it came from."""
    first: str
    second: str | None
    answer: float
    """The number of its class, or its rating."""


@dataclass(frozen=True)
class Encoded:
    """Rows of unequal lengths, one after another; `answers` says what each must be answered with."""

    kind: AnswerKind
    tokens: NDArray[np.int32]
    """[all tokens]"""
    segments: NDArray[np.uint8]
    """[all tokens] 1 for the first text and its frame, 2 for the second."""
    starts: I64
    """[rows + 1] where each row begins."""
    answers: NDArray[np.float64]
    """label, value: [rows]; span: [rows, 2] first and last position."""
    padding: int
    """The id that fills rows."""
    truncated: int = 0
    """How many rows lost some of their text."""
    counts: I64 | None = field(default=None)
    """label: [classes] how many rows have each."""

    def __len__(self) -> int:
        return len(self.starts) - 1


def encode(examples: Sequence[Example], kind: AnswerKind, classes: int, tokenizer: Tokenizer, length: int) -> Encoded:
    """Examples as rows of at most `length` tokens; what is longer loses tokens at the end of its longer text."""
    firsts = tokenizer.encode_batch([example.first for example in examples])
    paired = [example.second for example in examples if example.second is not None]
    seconds = iter(tokenizer.encode_batch(paired))
    rows: list[list[int]] = []
    splits: list[int] = []
    truncated = 0
    for example, first in zip(examples, firsts, strict=True):
        second = None if example.second is None else next(seconds)
        a, b = cut(len(first), None if second is None else len(second), length, tokenizer.special)
        truncated += a < len(first) or (second is not None and b < len(second))
        row, split = frame(first[:a], None if second is None else second[:b], tokenizer.special)
        rows.append(row)
        splits.append(split)
    answers = np.array([example.answer for example in examples], dtype=np.float64)
    counts = np.bincount(answers.astype(np.int64), minlength=classes) if kind == "label" else None
    return join(kind, rows, splits, answers, tokenizer.special.padding, truncated, counts)


def join(
    kind: AnswerKind,
    rows: Sequence[Sequence[int]],
    splits: Sequence[int],
    answers: NDArray[np.float64],
    padding: int,
    truncated: int = 0,
    counts: I64 | None = None,
) -> Encoded:
    """Framed rows as one `Encoded`; the second text of row i begins at `splits[i]`."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(starts[-1]))
    position = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    segments = 1 + (position >= np.repeat(np.array(splits, dtype=np.int64), lengths))
    return Encoded(kind, tokens, segments.astype(np.uint8), starts, answers, padding, truncated, counts)


def cut(first: int, second: int | None, length: int, special: SpecialIds) -> tuple[int, int]:
    """How many tokens of each text a row has room for; the longer text is cut first (BERT's `longest first`)."""
    frame = (special.cls is not None) + (special.sep is not None) * (1 if second is None else 2)
    room = length - frame
    if second is None:
        return min(first, room), 0
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    if first <= second:
        return shorter, room - shorter
    return room - shorter, shorter


def frame(first: Sequence[int], second: Sequence[int] | None, special: SpecialIds) -> tuple[list[int], int]:
    """The row, and where its second text begins (its length if it has none)."""
    cls = [] if special.cls is None else [special.cls]
    sep = [] if special.sep is None else [special.sep]
    row = [*cls, *first, *sep]
    if second is None:
        return row, len(row)
    return [*row, *second, *sep], len(row)


def some(examples: list[Any], limit: int | None) -> list[Any]:
    """`limit` of the examples, chosen at random once and for all, in their order."""
    if limit is None or limit >= len(examples):
        return examples
    chosen = np.random.default_rng(derive(0, "examples")).permutation(len(examples))[:limit]
    return [examples[number] for number in np.sort(chosen)]


def refuse_empty(examples: Sequence[Example], where: str) -> None:
    """Raises:
    UserError: there are no examples.
    """
    if not examples:
        raise UserError(f"{where} has no examples", "", "give a file with at least one")
