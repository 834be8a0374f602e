"""How examples become framed rows of ids: [CLS] A [SEP] or [CLS] A [SEP] B [SEP] (RoBERTa: <s> A </s></s> B </s>)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
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
    """The number of its class, or its rating; NaN: nobody has answered it (it is augmented)."""
    made: bool = False
    """It is augmented: `MASK` in it stands for a masked word."""


MASK = "[MASK]"
"""In an augmented text: a masked word, however the tokenizer spells its mask."""


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
    """label, value: [rows], NaN where nobody has answered; span: [rows, 2] first and last position; choice:
    [examples]."""
    padding: int
    """The id that fills rows."""
    truncated: int = 0
    """How many rows lost some of their text."""
    counts: I64 | None = field(default=None)
    """label, choice: [classes] how many examples have each."""
    choices: int = 1
    """How many rows, one after another, are one example."""

    def __len__(self) -> int:
        """Examples."""
        return (len(self.starts) - 1) // self.choices

    @cached_property
    def lengths(self) -> I64:
        """[examples] tokens of each one's longest row."""
        return np.diff(self.starts).reshape(-1, self.choices).max(-1, initial=0)


def encode(examples: Sequence[Example], kind: AnswerKind, classes: int, tokenizer: Tokenizer, length: int) -> Encoded:
    """Examples as rows of at most `length` tokens; what is longer loses tokens at the end of its longer text."""
    starts = range(0, max(len(examples), 1), AT_ONCE)
    parts = [_encoded(examples[start : start + AT_ONCE], kind, tokenizer, length) for start in starts]
    lengths = np.concatenate([np.diff(part.starts) for part in parts])
    answers = np.concatenate([part.answers for part in parts])
    given = answers[~np.isnan(answers)].astype(np.int64)
    return Encoded(
        kind,
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.segments for part in parts]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        answers,
        tokenizer.special.padding,
        sum(part.truncated for part in parts),
        np.bincount(given, minlength=classes) if kind == "label" else None,
    )


AT_ONCE = 16384
"""Examples whose ids are Python's integers at a time, which take ten times the room that arrays do."""


def _encoded(examples: Sequence[Example], kind: AnswerKind, tokenizer: Tokenizer, length: int) -> Encoded:
    firsts = _ids([(example.first, example.made) for example in examples], tokenizer)
    paired = [(example.second, example.made) for example in examples if example.second is not None]
    seconds = iter(_ids(paired, tokenizer))
    separators = tokenizer.pair_separators
    rows: list[list[int]] = []
    splits: list[int] = []
    truncated = 0
    for example, first in zip(examples, firsts, strict=True):
        second = None if example.second is None else next(seconds)
        a, b = cut(len(first), None if second is None else len(second), length, tokenizer.special, separators)
        truncated += a < len(first) or (second is not None and b < len(second))
        row, split = frame(first[:a], None if second is None else second[:b], tokenizer.special, separators)
        rows.append(row)
        splits.append(split)
    answers = np.array([example.answer for example in examples], dtype=np.float64)
    return join(kind, rows, splits, answers, tokenizer.special.padding, truncated)


def _ids(texts: Sequence[tuple[str, bool]], tokenizer: Tokenizer) -> list[list[int]]:
    """The ids of (text, whether it is augmented); a masked word is the tokenizer's mask, or else its unknown token."""
    parts = [text.split(MASK) if made else [text] for text, made in texts]
    encoded = iter(tokenizer.encode_batch([part for of_text in parts for part in of_text]))
    if all(len(of_text) == 1 for of_text in parts):
        return list(encoded)
    mask = next((one for one in (tokenizer.special.mask, tokenizer.special.unk) if one is not None), None)
    if mask is None:
        raise UserError(
            "task.augment masks words, and task.tokenizer has neither a mask nor an unknown token",
            f"{tokenizer.special.as_dict()}",
            "set task.augment.mask: 0",
        )
    result = []
    for of_text in parts:
        ids = next(encoded)
        for _ in of_text[1:]:
            ids = [*ids, mask, *next(encoded)]
        result.append(ids)
    return result


def join(
    kind: AnswerKind,
    rows: Sequence[Sequence[int] | NDArray[np.int32]],
    splits: Sequence[int],
    answers: NDArray[np.float64],
    padding: int,
    truncated: int = 0,
    counts: I64 | None = None,
    choices: int = 1,
) -> Encoded:
    """Framed rows as one `Encoded`; the second text of row i begins at `splits[i]`."""
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    nothing = np.zeros(0, dtype=np.int32)
    tokens = np.concatenate([nothing, *(np.asarray(row, dtype=np.int32) for row in rows)])
    first = np.array(splits, dtype=np.int64)
    sides = np.tile(np.array([1, 2], dtype=np.uint8), len(rows))
    segments = np.repeat(sides, np.stack([first, lengths - first], axis=1).ravel())
    return Encoded(kind, tokens, segments, starts, answers, padding, truncated, counts, choices)


def cut(first: int, second: int | None, length: int, special: SpecialIds, separators: int = 1) -> tuple[int, int]:
    """How many tokens of each text a row has room for; the longer text is cut first (BERT's `longest first`).

    Args:
        separators: between the two.
    """
    frame = (special.cls is not None) + (special.sep is not None) * (1 if second is None else 1 + separators)
    room = length - frame
    if second is None:
        return min(first, room), 0
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    if first <= second:
        return shorter, room - shorter
    return room - shorter, shorter


def frame(
    first: Sequence[int], second: Sequence[int] | None, special: SpecialIds, separators: int = 1
) -> tuple[list[int], int]:
    """The row, and where its second text begins (its length if it has none); `separators` are between them."""
    cls = [] if special.cls is None else [special.cls]
    sep = [] if special.sep is None else [special.sep]
    if second is None:
        row = [*cls, *first, *sep]
        return row, len(row)
    row = [*cls, *first, *sep * separators]
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
