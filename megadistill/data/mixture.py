"""Which corpus each draw of a weighted mixture falls to: a periodic schedule, until a corpus has given all it may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]

PERIOD = 4096
"""Length of the weighted schedule: shares are multiples of 1/4096."""


@dataclass(frozen=True)
class Phase:
    """A stretch of draws over which the same pools share by the same weights."""

    start: int
    """Its first draw."""
    pools: I64
    """[pools] the numbers of those that take part."""
    weights: I64
    """[pools] how many of a period's places each has."""
    base: I64
    """[pools] how many rows each gave before."""
    schedule: I64
    """[period] which of `pools` each place belongs to."""
    ranks: I64
    """[period] how many earlier places of the period are the same pool's."""

    def deal(self, draws: I64) -> tuple[I64, I64]:
        """(pool, how many rows that pool gave before) of each draw [n]."""
        periods, within = np.divmod(draws - self.start, len(self.schedule))
        index = self.schedule[within]
        drawn = self.base[index] + periods * self.weights[index] + self.ranks[within]
        return self.pools[index], drawn.astype(np.int64)


def mixture(weights: Sequence[float], limits: Sequence[int | None] | None = None) -> tuple[list[Phase], int | None]:
    """The phases of a mixture, and how many draws it has in all (None: without end).

    Args:
        weights: share of each pool in any units.
        limits: rows after which a pool leaves, its share then going to the others; None: never.
    """
    left: list[int | None] = [None] * len(weights) if limits is None else list(limits)
    given = np.zeros(len(weights), dtype=np.int64)
    phases: list[Phase] = []
    active, start = list(range(len(weights))), 0
    while active:
        whole = [1] if len(weights) == 1 else integer_weights([weights[pool] for pool in active], PERIOD)
        schedule, ranks = deficit_schedule(whole)
        pools, shares = np.array(active, dtype=np.int64), np.array(whole, dtype=np.int64)
        phases.append(Phase(start, pools, shares, given[pools], schedule, ranks))
        ends = {}
        for number, pool in enumerate(active):
            limit = left[pool]
            if limit is not None:
                periods, rank = divmod(limit - int(given[pool]) - 1, whole[number])
                ends[pool] = periods * len(schedule) + int(np.flatnonzero(schedule == number)[rank]) + 1
        if not ends:
            return phases, None
        leaving = min(ends, key=lambda pool: ends[pool])
        periods, places = divmod(ends[leaving], len(schedule))
        given[pools] += periods * shares + np.bincount(schedule[:places], minlength=len(active))
        start += ends[leaving]
        active.remove(leaving)
    return phases, start


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
