"""What each position must predict: masked tokens or the next; decided by (seed, corpus, epoch, row) alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from megadistill.core.errors import UserError
from megadistill.core.schema import Strict
from megadistill.core.types import IGNORE
from megadistill.data.hashing import U64, bits, uniform

I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Vocabulary:
    """What masking knows of the tokenizer and the corpora."""

    size: int
    mask: int | None
    special: frozenset[int]
    """Ids that are never a target and never drawn."""
    counts: I64 | None = None
    """[size] how often each id occurs in the training rows."""
    opens_word: NDArray[np.bool_] | None = None
    """[size] whether an id begins a word rather than continuing one; None: the tokenizer does not tell."""

    @cached_property
    def ordinary(self) -> I64:
        """The ids that are not special."""
        return np.array(sorted(set(range(self.size)) - self.special), dtype=np.int64)

    @cached_property
    def maskable(self) -> NDArray[np.bool_]:
        """[size]"""
        result = np.zeros(self.size, dtype=np.bool_)
        result[self.ordinary] = True
        return result


class Targets(Strict):
    """Base of the ways to make targets. A new one is a subclass with `kind: Literal["name"]`."""

    kind: str

    def check(self, vocabulary: Vocabulary) -> None:
        """Raises:
        UserError: these targets cannot be made with this vocabulary.
        """

    @property
    def num_drawings(self) -> int | None:
        """How many different targets a row has, in turn; None: others in every epoch."""
        return None

    def seed_for(self, run_seed: int) -> int:
        """What targets are drawn from."""
        return run_seed

    def drawn_anew(self, epochs: I64) -> I64:
        """[B] which drawing of targets a row has at its so manieth epoch; equal numbers, equal targets."""
        return epochs if self.num_drawings is None else epochs % self.num_drawings

    def apply(self, tokens: I64, segments: I64, keys: U64, vocabulary: Vocabulary) -> tuple[I64, I64]:
        """Inputs and labels, both [B, L], of rows whose randomness comes from `keys` [B] only."""
        raise NotImplementedError


class Clm(Targets):
    """Causal language modelling: position l predicts l + 1 of the same document, its separator included. The
    first token of the next document is no target, since nothing before it announces it."""

    kind: Literal["clm"] = "clm"

    @property
    def num_drawings(self) -> int | None:
        return 1

    def seed_for(self, run_seed: int) -> int:
        return 0  # nothing is drawn

    def apply(self, tokens: I64, segments: I64, keys: U64, vocabulary: Vocabulary) -> tuple[I64, I64]:
        labels = np.full_like(tokens, IGNORE)
        same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        labels[:, :-1][same] = tokens[:, 1:][same]
        return tokens, labels


class Mlm(Targets):
    """Masked language modelling (BERT): some positions become targets; of these most are hidden, some get a
    random token, some stay as they are."""

    kind: Literal["mlm"] = "mlm"
    probability: float = Field(0.15, gt=0, le=1)
    """Share of the maskable positions that become targets; a row that has any gets at least one."""
    unit: Literal["token", "word", "span"] = "token"
    """What is chosen: positions; whole words (BERT's second release: all pieces of a chosen word); or spans of
    geometric length (SpanBERT, Joshi et al. 2020), which share one fate."""
    span_mean: float = Field(3.8, ge=1)
    """span: mean length in tokens before it is cut to span_longest (SpanBERT: p = 0.2 cut at 10 has mean 3.8)."""
    span_longest: int = Field(10, ge=1)
    """span: longest span in tokens."""
    mask: float = Field(0.8, ge=0, le=1)
    """Share of the targets that become the mask token."""
    random: float = Field(0.1, ge=0, le=1)
    """Share that become a random ordinary token."""
    keep: float = Field(0.1, ge=0, le=1)
    """Share that stay."""
    smoothing: float | None = Field(None, ge=0)
    """Draw rare tokens more often: a fixed share of each row, without replacement, with weight
    max(count, 1) ** -smoothing (DistilBERT and XLM: 0.7; they draw over a flattened batch, which would make a row's
    targets depend on its neighbours). None: each position by itself, all alike."""
    maskings: int | None = Field(None, ge=1)
    """How many different maskings a row has, in turn: 1 is static masking, BERT's data had 10. None: a new one in
    every epoch (RoBERTa's dynamic masking)."""
    seed: int | None = None
    """What masks are drawn from, for runs of different seeds that are to have the same; None: the run's seed."""

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Mlm:
        if abs(self.mask + self.random + self.keep - 1) > 1e-6:
            raise ValueError(f"mask + random + keep must be 1, not {self.mask + self.random + self.keep:g}")
        if self.smoothing is not None and self.unit != "token":
            raise ValueError(f"smoothing weighs tokens: it needs unit: token, not {self.unit}")
        if self.unit == "span" and self.span_mean > (self.span_longest + 1) / 2:
            raise ValueError(f"span_mean {self.span_mean:g} is out of reach with span_longest {self.span_longest}")
        return self

    def check(self, vocabulary: Vocabulary) -> None:
        if vocabulary.mask is None:
            raise UserError(
                "data.targets: mlm needs a tokenizer with a mask token",
                "this one has none",
                "use kind: clm, or a tokenizer with [MASK] or <mask>",
            )
        if self.unit == "word" and vocabulary.opens_word is None:
            raise UserError(
                "data.targets: unit: word needs a tokenizer that marks where words begin",
                "its vocabulary has none of the marks ## (WordPiece), ▁ (sentencepiece) and Ġ (byte-level BPE)",
                "use unit: token or span",
            )

    @property
    def num_drawings(self) -> int | None:
        return self.maskings

    def seed_for(self, run_seed: int) -> int:
        return run_seed if self.seed is None else self.seed

    def apply(self, tokens: I64, segments: I64, keys: U64, vocabulary: Vocabulary) -> tuple[I64, I64]:
        assert vocabulary.mask is not None
        length = tokens.shape[1]
        maskable = vocabulary.maskable[tokens] & (segments > 0)
        draw = uniform(keys, 0, length)
        fate = uniform(keys, 1, length)
        if self.unit == "word":
            assert vocabulary.opens_word is not None
            chosen = _words(draw, maskable, segments, vocabulary.opens_word[tokens], self.probability)
        elif self.unit == "span":
            lengths = _geometric(uniform(keys, 3, length), self.span_mean, self.span_longest)
            chosen, owner = _spans(draw, lengths, maskable, segments, self._wanted(maskable), self.span_longest)
            fate = np.take_along_axis(fate, owner, axis=1)
        elif self.smoothing is None:
            chosen = _independent(draw, maskable, self.probability)
        else:
            assert vocabulary.counts is not None
            weights = np.maximum(vocabulary.counts[tokens], 1).astype(np.float64) ** -self.smoothing
            chosen = _weighted(draw, maskable, weights, self._wanted(maskable))
        labels = np.where(chosen, tokens, IGNORE)
        ids = np.where(chosen & (fate < self.mask), vocabulary.mask, tokens)
        replaced = chosen & (fate >= self.mask) & (fate < self.mask + self.random)
        drawn = bits(keys, 2, length)[replaced] % np.uint64(len(vocabulary.ordinary))
        ids[replaced] = vocabulary.ordinary[drawn.astype(np.int64)]
        return ids, labels

    def _wanted(self, maskable: Bools) -> I64:
        """[B] how many targets a row gets where the number is fixed."""
        available = maskable.sum(axis=1)
        wanted = np.minimum(available, np.maximum(1, np.round(self.probability * available)))
        return wanted.astype(np.int64)


# ------------------------------------------------------------------------------------------ choosing, all [B, L]


def _independent(draw: Floats, maskable: Bools, probability: float) -> Bools:
    draw = np.where(maskable, draw, 2.0)
    first = draw == draw.min(axis=1, keepdims=True)  # at least one target a row
    chosen: Bools = (first | (draw < probability)) & maskable
    return chosen


def _weighted(draw: Floats, maskable: Bools, weights: Floats, wanted: I64) -> Bools:
    """The n smallest of -log(u) / weight: draws without replacement (Efraimidis and Spirakis 2006)."""
    return _smallest(np.where(maskable, -np.log1p(-draw) / weights, np.inf), wanted)


def _words(draw: Floats, maskable: Bools, segments: I64, opens: Bools, probability: float) -> Bools:
    """`_independent` over words: all positions of a word share the draw of its first."""
    first = np.maximum.accumulate(np.where(_breaks(maskable, segments) | opens, np.arange(draw.shape[1]), 0), axis=1)
    return _independent(np.take_along_axis(draw, first, axis=1), maskable, probability)


def _spans(draw: Floats, lengths: I64, maskable: Bools, segments: I64, wanted: I64, longest: int) -> tuple[Bools, I64]:
    """Chosen positions, and for each position the start of the span that would cover it first. A span may start
    anywhere; spans join in the order of their start's draw until enough positions are covered, the last one cut
    short. None reaches over a special token or into another document."""
    columns = np.arange(draw.shape[1])
    run = np.cumsum(_breaks(maskable, segments), axis=1)
    best = np.where(maskable, draw, np.inf)
    owner = np.broadcast_to(columns, draw.shape).copy()
    for back in range(1, min(longest, draw.shape[1])):
        reaches = (lengths[:, :-back] > back) & (run[:, :-back] == run[:, back:]) & maskable[:, back:]
        earlier = np.where(reaches, draw[:, :-back], np.inf)
        better = earlier < best[:, back:]
        best[:, back:][better] = earlier[better]
        owner[:, back:][better] = np.broadcast_to(columns[:-back], better.shape)[better]
    return _smallest(best, wanted), owner


def _breaks(maskable: Bools, segments: I64) -> Bools:
    """Where a position cannot belong to what stands before it: another document, or a special token between."""
    result = np.ones_like(maskable)
    result[:, 1:] = (segments[:, 1:] != segments[:, :-1]) | (maskable[:, 1:] != maskable[:, :-1]) | ~maskable[:, 1:]
    return result


def _smallest(values: Floats, wanted: I64) -> Bools:
    """The `wanted` [B] smallest of each row; of equals the first."""
    place = np.argsort(np.argsort(values, axis=1, kind="stable"), axis=1, kind="stable")
    chosen: Bools = place < wanted[:, None]
    return chosen


def _geometric(draw: Floats, mean: float, longest: int) -> I64:
    """Lengths from 1, geometric with the parameter that gives `mean` after cutting to `longest`."""
    stop = _stopping(mean, longest)
    if stop >= 1:
        return np.ones(draw.shape, dtype=np.int64)
    weights = (1 - stop) ** np.arange(longest) * stop
    return 1 + np.searchsorted(np.cumsum(weights / weights.sum())[:-1], draw, side="right").astype(np.int64)


@lru_cache
def _stopping(mean: float, longest: int) -> float:
    """p of the geometric distribution on 1..longest, renormalised, that has the given mean (by bisection)."""
    lengths = np.arange(1, longest + 1)
    low, high = 1e-9, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        weights = (1 - middle) ** (lengths - 1)
        if (weights * lengths).sum() / weights.sum() > mean:
            low = middle
        else:
            high = middle
    return high
