"""How counters become random bits: integer arithmetic only, the same on every machine and numpy version."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megadistill.core.seeds import derive

U64 = NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_STREAM = 1 << 32
"""Positions of one stream; the next stream starts behind them."""


def mix(x: U64) -> U64:
    """A bijection of uint64 that spreads every bit over all (splitmix64's finaliser, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def row_keys(seed: int, purpose: str, corpus: str, epochs: NDArray[np.int64], rows: NDArray[np.int64]) -> U64:
    """[B] one key per row from (seed, purpose, corpus, epoch, row), and from nothing else."""
    base = np.uint64(derive(seed, purpose, corpus))
    return mix(mix(base + epochs.astype(np.uint64) * _STEP) + rows.astype(np.uint64) * _STEP)


def bits(keys: U64, stream: int, length: int) -> U64:
    """[B, length] random uint64 of each key's numbered stream."""
    counters = np.arange(1, length + 1, dtype=np.uint64) + np.uint64(stream * _STREAM)
    return mix(keys[:, None] + counters * _STEP)


def uniform(keys: U64, stream: int, length: int) -> NDArray[np.float64]:
    """[B, length] uniform in [0, 1), from the upper 53 bits."""
    return (bits(keys, stream, length) >> np.uint64(11)).astype(np.float64) * 2.0**-53
