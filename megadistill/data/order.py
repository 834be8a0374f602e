"""Which row stands at which position of the training stream: a pure function of (seed, position).

Positions count the rows of all global batches from 0. Without weights, all corpora form one pool; with
weights each corpus is a pool and a periodic schedule deals positions to pools. The k-th row drawn from a pool
of N rows is the (k mod N)-th of a permutation keyed by (seed, pool, k div N): each of its rows comes once per
epoch, in an order that is new in every epoch. Ranks, micro-batches and restarts are only views of this.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megadistill.core.seeds import derive
from megadistill.data.hashing import U64, mix

ORDER_VERSION = 1
"""Part of the stream's fingerprint; raise it with any change of the order."""

PERIOD = 4096
"""Length of the weighted schedule: shares are multiples of 1/4096."""

ROUNDS = 8

I64 = NDArray[np.int64]


class Places(NamedTuple):
    """Where rows are; all [n] int64."""

    corpus: I64
    """Number of the corpus in the config's list."""
    epoch: I64
    """How often this row (without weights: every row) was seen before."""
    row: I64
    """Number of the row in the corpus."""


class Order:
    """The order of one run.

    Args:
        rows: training rows of each corpus.
        weights: share of each corpus in any units; None: each row of each corpus once per epoch.
        seed: the run's seed.
        skips: windows [start, stop) of draws that are left out, in the order's own numbering (see `draws`).
    """

    def __init__(
        self,
        rows: Sequence[int],
        weights: Sequence[float] | None,
        seed: int,
        skips: Sequence[tuple[int, int]] = (),
    ) -> None:
        assert sum(rows) > 0
        assert weights is None or (len(weights) == len(rows) and all(rows))
        self.seed = seed
        self.starts = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self.weights = [1] if weights is None else integer_weights(weights, PERIOD)
        self.pool_rows = [int(self.starts[-1])] if weights is None else list(rows)
        self.pool_starts = self.starts[:1] if weights is None else self.starts[:-1]
        self.schedule, self.rank_in_period = deficit_schedule(self.weights)
        windows = merge_windows(skips)
        lengths = np.cumsum([0] + [stop - start for start, stop in windows], dtype=np.int64)
        self.skipped = lengths
        self.skip_positions = np.array([start for start, _ in windows], dtype=np.int64) - lengths[:-1]

    def draws(self, positions: I64) -> I64:
        """The numbering before skipping: position p is the p-th draw that no skip window holds. A window to
        skip is given in draws, so that it means the same whatever else is skipped."""
        return positions + self.skipped[np.searchsorted(self.skip_positions, positions, side="right")]

    def locate(self, positions: I64) -> Places:
        """Corpus, epoch and row of each position [n] int64; O(1) each."""
        periods, within = np.divmod(self.draws(positions), len(self.schedule))
        pools = self.schedule[within]
        flat = np.empty_like(positions)
        epochs = np.empty_like(positions)
        for pool in np.unique(pools):
            here = pools == pool
            drawn = periods[here] * self.weights[pool] + self.rank_in_period[within[here]]
            epochs[here], index = np.divmod(drawn, self.pool_rows[pool])
            flat[here] = self.pool_starts[pool] + self._permuted(int(pool), epochs[here], index)
        corpus = np.searchsorted(self.starts, flat, side="right") - 1
        return Places(corpus, epochs, flat - self.starts[corpus])

    def _permuted(self, pool: int, epochs: I64, index: I64) -> I64:
        result = np.empty_like(index)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            keys = round_keys(self.seed, pool, int(epoch))
            result[here] = permute(index[here], self.pool_rows[pool], keys)
        return result


def permute(index: I64, size: int, keys: U64) -> I64:
    """The images of `index` [n] under a keyed permutation of range(size).

    A balanced Feistel network permutes the next power of four; numbers that fall outside walk on along their
    cycle until they are inside (Black and Rogaway 2002), fewer than four steps on average.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    values = _feistel(index.astype(np.uint64), half, low, keys)
    outside = np.flatnonzero(values >= size)
    while outside.size:
        values[outside] = _feistel(values[outside], half, low, keys)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _feistel(values: U64, half: np.uint64, low: np.uint64, keys: U64) -> U64:
    left, right = values >> half, values & low
    for key in keys:
        left, right = right, left ^ (mix(right + key) & low)
    return (left << half) | right


@lru_cache(maxsize=4096)
def round_keys(seed: int, pool: int, epoch: int) -> U64:
    """[ROUNDS] the keys of one epoch's permutation."""
    names = ("order", ORDER_VERSION, pool, epoch)
    return np.array([derive(seed, *names, number) for number in range(ROUNDS)], dtype=np.uint64)


def integer_weights(weights: Sequence[float], total: int) -> list[int]:
    """Integers that sum to `total`, each at least 1, as near to the shares as can be (largest remainders)."""
    exact = np.array(weights, dtype=np.float64) / sum(weights) * total
    whole = np.maximum(1, np.floor(exact)).astype(np.int64)
    while whole.sum() != total:
        missing = exact - whole
        missing[whole <= 1] += total if whole.sum() > total else 0.0  # a share of 1 is never taken away
        whole[missing.argmax() if whole.sum() < total else missing.argmin()] += np.sign(total - whole.sum())
    return [int(w) for w in whole]


def deficit_schedule(weights: Sequence[int]) -> tuple[I64, I64]:
    """One period: the pool of each place, and how many earlier places of the period are the same pool's.

    Each place goes to the pool that is furthest behind its share (the first of equals), so shares hold in
    every stretch of the stream, not only on average.
    """
    period = sum(weights)
    share, count = np.array(weights, dtype=np.int64), np.zeros(len(weights), dtype=np.int64)
    schedule, ranks = np.empty(period, dtype=np.int64), np.empty(period, dtype=np.int64)
    for place in range(period):
        pool = int((share * (place + 1) - count * period).argmax())
        schedule[place], ranks[place] = pool, count[pool]
        count[pool] += 1
    return schedule, ranks


def merge_windows(windows: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted, disjoint, not empty windows with the same union."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(window for window in windows if window[0] < window[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged
