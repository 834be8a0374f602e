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
from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.core.schema import Strict
from megadistill.core.seeds import derive
from megadistill.data.hashing import U64, mix
from megadistill.data.mixture import mixture

ORDER_VERSION = 1
"""Part of the stream's fingerprint; raise it with any change of the order."""

ROUNDS = 8

I64 = NDArray[np.int64]


class Blocks(Strict):
    """How far `order: block` shuffles: whole blocks all over the corpus, rows inside a window of blocks."""

    rows: int = Field(16_384, gt=0)
    """Consecutive rows that form a block."""
    window: int = Field(64, gt=0)
    """Blocks whose rows are mixed; the shards that two windows of them lie in are what must be near at a time."""


class Places(NamedTuple):
    """Where rows are; all [n] int64."""

    corpus: I64
    """Number of the corpus in the config's list."""
    epoch: I64
    """How often this row was seen before."""
    row: I64
    """Number of the row in the corpus."""


class Order:
    """The order of one run.

    Args:
        rows: training rows of each corpus.
        weights: share of each corpus in any units; None: each row of each corpus `repeats` times per epoch.
        seed: the run's seed.
        skips: windows [start, stop) of draws that are left out, in the order's own numbering (see `draws`).
        repeats: how often each corpus's rows come in one epoch, without weights; None: once.
        epochs: after how many epochs a corpus leaves the mixture to the others, with weights; None: never.
        blocks: shuffle blocks and rows inside a window; None: all rows all over.
    """

    def __init__(
        self,
        rows: Sequence[int],
        weights: Sequence[float] | None,
        seed: int,
        skips: Sequence[tuple[int, int]] = (),
        *,
        repeats: Sequence[int] | None = None,
        epochs: Sequence[int | None] | None = None,
        blocks: Blocks | None = None,
    ) -> None:
        assert sum(rows) > 0
        assert weights is None or (len(weights) == len(rows) and all(rows) and repeats is None)
        assert epochs is None or weights is not None
        self.seed, self.blocks = seed, blocks
        self.rows = np.array(rows, dtype=np.int64)
        self.repeats = np.array([1] * len(rows) if repeats is None else repeats, dtype=np.int64)
        self.starts = np.concatenate([[0], np.cumsum(self.rows * self.repeats)]).astype(np.int64)
        self.pool_rows = [int(self.starts[-1])] if weights is None else list(rows)
        self.pool_starts = self.starts[:1] if weights is None else self.starts[:-1]
        limits = [None if e is None else e * n for e, n in zip(epochs, rows, strict=True)] if epochs else None
        self.phases, self.length = mixture([1.0] if weights is None else weights, limits)
        """`length`: draws until every corpus has left; None: without end."""
        self.phase_starts = np.array([phase.start for phase in self.phases], dtype=np.int64)
        windows = merge_windows(skips)
        lengths = np.cumsum([0] + [stop - start for start, stop in windows], dtype=np.int64)
        self.skipped = lengths
        self.skip_positions = np.array([start for start, _ in windows], dtype=np.int64) - lengths[:-1]

    def draws(self, positions: I64) -> I64:
        """The numbering before skipping: position p is the p-th draw that no skip window holds. A window to
        skip is given in draws, so that it means the same whatever else is skipped."""
        return positions + self.skipped[np.searchsorted(self.skip_positions, positions, side="right")]

    def locate(self, positions: I64) -> Places:
        """Corpus, epoch and row of each position [n] int64; O(1) each.

        Raises:
            UserError: a position behind the end of a mixture whose corpora have all left.
        """
        draws = self.draws(positions)
        if self.length is not None and draws.size and draws.max() >= self.length:
            raise UserError(
                f"the data ends after {self.length:,} rows",
                f"every corpus has an `epochs` limit, and row {int(draws.max()):,} is wanted",
                "raise `epochs` of a corpus or take it away, or train fewer steps",
            )
        flat, epochs = np.empty_like(draws), np.empty_like(draws)
        numbers = np.searchsorted(self.phase_starts, draws, side="right") - 1
        for number in np.unique(numbers):
            now = np.flatnonzero(numbers == number)
            pools, drawn = self.phases[number].deal(draws[now])
            for pool in np.unique(pools):
                mine = pools == pool
                here = now[mine]
                epochs[here], index = np.divmod(drawn[mine], self.pool_rows[pool])
                flat[here] = self.pool_starts[pool] + self._permuted(int(pool), epochs[here], index)
        corpus = np.searchsorted(self.starts, flat, side="right") - 1
        copy, row = np.divmod(flat - self.starts[corpus], self.rows[corpus])
        return Places(corpus, epochs * self.repeats[corpus] + copy, row)

    def _permuted(self, pool: int, epochs: I64, index: I64) -> I64:
        result, size = np.empty_like(index), self.pool_rows[pool]
        for epoch in np.unique(epochs):
            here, keys = epochs == epoch, round_keys(self.seed, pool, int(epoch))
            if self.blocks is None:
                result[here] = permute(index[here], size, keys)
            else:
                result[here] = self._permuted_in_blocks(index[here], pool, int(epoch), keys)
        return result

    def _permuted_in_blocks(self, index: I64, pool: int, epoch: int, keys: U64) -> I64:
        """Blocks change places all over the pool, then rows inside each window of blocks. The last block, which
        may be shorter, stays in the last window."""
        assert self.blocks is not None
        size, rows = self.pool_rows[pool], self.blocks.rows
        whole, span = size // rows, rows * self.blocks.window
        windows, within = np.divmod(index, span)
        for window in np.unique(windows):
            here, start = windows == window, int(window) * span
            inner = round_keys(self.seed, pool, epoch, int(window))
            within[here] = permute(within[here], min(span, size - start), inner)
        slot, offset = np.divmod(windows * span + within, rows)
        inside = slot < whole
        slot[inside] = permute(slot[inside], whole, keys)
        return slot * rows + offset


class BatchSizes:
    """How many rows each step takes, and so at which position it starts.

    Args:
        first: rows of a step from step 0 on.
        changes: (step, rows of a step from there on), in any order.
    """

    def __init__(self, first: int, changes: Sequence[tuple[int, int]] = ()) -> None:
        segments = dict(sorted({0: first, **dict(changes)}.items()))
        self.steps = np.array(list(segments), dtype=np.int64)
        self.sizes = np.array(list(segments.values()), dtype=np.int64)
        assert self.steps[0] == 0
        assert (self.sizes > 0).all()
        self.starts = np.concatenate([[0], np.cumsum(np.diff(self.steps) * self.sizes[:-1])]).astype(np.int64)

    def span(self, step: int) -> tuple[int, int]:
        """(first position, number of rows) of a 0-based step."""
        segment = int(np.searchsorted(self.steps, step, side="right")) - 1
        size = int(self.sizes[segment])
        return int(self.starts[segment]) + (step - int(self.steps[segment])) * size, size

    def positions(self, step: int, rank: int, ranks: int, micro_size: int) -> I64:
        """Those of one rank at a step, its part [:, rank] of [accumulation, ranks, micro], one after another."""
        start, size = self.span(step)
        turn = ranks * micro_size
        first = start + rank * micro_size + np.arange(size // turn, dtype=np.int64) * turn
        return (first[:, None] + np.arange(micro_size, dtype=np.int64)).reshape(-1)


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
def round_keys(seed: int, pool: int, epoch: int, window: int | None = None) -> U64:
    """[ROUNDS] the keys of one epoch's permutation, or of the rows inside one of its windows."""
    names = ("order", ORDER_VERSION, pool, epoch) if window is None else ("order", ORDER_VERSION, pool, epoch, window)
    return np.array([derive(seed, *names, number) for number in range(ROUNDS)], dtype=np.uint64)


def merge_windows(windows: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted, disjoint, not empty windows with the same union."""
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(window for window in windows if window[0] < window[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged
