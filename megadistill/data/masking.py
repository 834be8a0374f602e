"""What each position must predict: masked tokens or the next; decided by (seed, corpus, epoch, row) alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from megadistill.core.errors import UserError
from megadistill.core.schema import Strict
from megadistill.core.types import IGNORE
from megadistill.data.hashing import U64, bits, uniform

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class Vocabulary:
    """What masking knows of the tokenizer and the corpora."""

    size: int
    mask: int | None
    special: frozenset[int]
    """Ids that are never a target and never drawn."""
    counts: I64 | None = None
    """[size] how often each id occurs in the training rows."""

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

    def apply(self, tokens: I64, segments: I64, keys: U64, vocabulary: Vocabulary) -> tuple[I64, I64]:
        """Inputs and labels, both [B, L], of rows whose randomness comes from `keys` [B] only."""
        raise NotImplementedError


class Clm(Targets):
    """Causal language modelling: position l predicts l + 1 of the same document, its separator included. The
    first token of the next document is no target, since nothing before it announces it."""

    kind: Literal["clm"] = "clm"

    def apply(self, tokens: I64, segments: I64, keys: U64, vocabulary: Vocabulary) -> tuple[I64, I64]:
        labels = np.full_like(tokens, IGNORE)
        same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
        labels[:, :-1][same] = tokens[:, 1:][same]
        return tokens, labels


class Mlm(Targets):
    """Masked language modelling (BERT): some positions become targets; of these most are hidden, some get a
    random token, some stay as they are. Masks are drawn anew in every epoch."""

    kind: Literal["mlm"] = "mlm"
    probability: float = Field(0.15, gt=0, le=1)
    """Share of the maskable positions that become targets; a row that has any gets at least one."""
    mask: float = Field(0.8, ge=0, le=1)
    """Share of the targets that become the mask token."""
    random: float = Field(0.1, ge=0, le=1)
    """Share that become a random ordinary token."""
    keep: float = Field(0.1, ge=0, le=1)
    """Share that stay."""
    smoothing: float | None = Field(None, ge=0)
    """Draw rare tokens more often: a fixed share of each row, without replacement, with weight
    max(count, 1) ** -smoothing (DistilBERT and XLM: 0.7). None: each position by itself, all alike."""

    @model_validator(mode="after")
    def _shares_sum_to_one(self) -> Mlm:
        if abs(self.mask + self.random + self.keep - 1) > 1e-6:
            raise ValueError(f"mask + random + keep must be 1, not {self.mask + self.random + self.keep:g}")
        return self

    def check(self, vocabulary: Vocabulary) -> None:
        if vocabulary.mask is None:
            raise UserError(
                "data.targets: mlm needs a tokenizer with a mask token",
                "this one has none",
                "use kind: clm, or a tokenizer with [MASK] or <mask>",
            )

    def apply(self, tokens: I64, segments: I64, keys: U64, vocabulary: Vocabulary) -> tuple[I64, I64]:
        assert vocabulary.mask is not None
        length = tokens.shape[1]
        maskable = vocabulary.maskable[tokens] & (segments > 0)
        draw = uniform(keys, 0, length)
        if self.smoothing is None:
            chosen = self._independent(draw, maskable)
        else:
            assert vocabulary.counts is not None
            weights = np.maximum(vocabulary.counts[tokens], 1).astype(np.float64) ** -self.smoothing
            chosen = self._weighted(draw, maskable, weights)
        labels = np.where(chosen, tokens, IGNORE)
        fate = uniform(keys, 1, length)
        ids = np.where(chosen & (fate < self.mask), vocabulary.mask, tokens)
        replaced = chosen & (fate >= self.mask) & (fate < self.mask + self.random)
        drawn = bits(keys, 2, length)[replaced] % np.uint64(len(vocabulary.ordinary))
        ids[replaced] = vocabulary.ordinary[drawn.astype(np.int64)]
        return ids, labels

    def _independent(self, draw: NDArray[np.float64], maskable: NDArray[np.bool_]) -> NDArray[np.bool_]:
        draw = np.where(maskable, draw, 2.0)
        first = draw == draw.min(axis=1, keepdims=True)  # at least one target a row
        chosen: NDArray[np.bool_] = (first | (draw < self.probability)) & maskable
        return chosen

    def _weighted(
        self, draw: NDArray[np.float64], maskable: NDArray[np.bool_], weights: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """The n smallest of -log(u) / weight: draws without replacement (Efraimidis and Spirakis 2006)."""
        arrival = np.where(maskable, -np.log1p(-draw) / weights, np.inf)
        available = maskable.sum(axis=1)
        wanted = np.minimum(available, np.maximum(1, np.round(self.probability * available))).astype(np.int64)
        place = np.argsort(np.argsort(arrival, axis=1, kind="stable"), axis=1, kind="stable")
        chosen: NDArray[np.bool_] = place < wanted[:, None]
        return chosen
