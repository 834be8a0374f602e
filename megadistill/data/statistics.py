"""What is worth knowing of a prepared corpus: `stats.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STATS = "stats.json"

LENGTH_BINS = 32
"""Documents are counted by the bits of their number of tokens: bin b has those of 2**(b - 1) to 2**b - 1."""


@dataclass(frozen=True)
class PartStats:
    """What one part of a corpus holds."""

    documents: int
    tokens: int
    """Separators included, padding not."""
    rows: int
    padding_share: float


@dataclass(frozen=True)
class CorpusStats:
    """What became of one corpus."""

    name: str
    key: str
    """Hash of everything that decides the rows; equal keys are not prepared again."""
    settings: str
    """Hash of the same without the sources."""
    documents: int
    """That were kept, in both parts."""
    duplicates: int
    """That were there before, word for word; dropped."""
    near_duplicates: int
    """That resemble one that was there before; dropped."""
    contaminated: int
    """That share text with evaluation files; dropped."""
    megabytes: float
    """Million characters kept."""
    unknown_share: float
    """Share of unknown tokens in training rows."""
    document_lengths: dict[str, int]
    """Documents by their tokens: {"64-127": 10, ...}."""
    train: PartStats
    held_out: PartStats
    made_with: dict[str, Any] | None = None
    """The settings that a config must have to read the rows as its own; None: not known."""


def length_histogram(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """[LENGTH_BINS] how many documents have so many bits of length."""
    bits = np.frexp(lengths.astype(np.float64))[1]
    return np.bincount(np.clip(bits, 0, LENGTH_BINS - 1), minlength=LENGTH_BINS).astype(np.int64)


def named_bins(histogram: NDArray[np.int64]) -> dict[str, int]:
    """The histogram from its first to its last document, bins by what they hold."""
    used = np.flatnonzero(histogram)
    if not used.size:
        return {}
    return {f"{2 ** (b - 1)}-{2**b - 1}" if b > 1 else str(b): int(histogram[b]) for b in range(used[0], used[-1] + 1)}


def read_stats(path: Path) -> CorpusStats | None:
    """None if there are none, or of another version."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        parts = {part: PartStats(**values[part]) for part in ("train", "held_out")}
        return CorpusStats(**values | parts)
    except (OSError, ValueError, TypeError, KeyError):
        return None
