"""A task's examples as the rows of a stream: batches in the same order law as a corpus's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from megadistill.core.files import sha256_json
from megadistill.core.types import IGNORE, Batch
from megadistill.data.order import ORDER_VERSION, Order, Places
from megadistill.tasks.encoding import Encoded

WIDTH_UNIT = 8
"""Rows of a micro-batch are padded to a multiple of this."""

I64 = NDArray[np.int64]


class TaskRows:
    """Rows in memory (a million short ones take about 100 MB); see `data.rows.Rows` for what each member says."""

    staging = None

    def __init__(self, encoded: Encoded, sequence_length: int) -> None:
        self.encoded, self.sequence_length = encoded, sequence_length

    @property
    def sizes(self) -> list[int]:
        return [len(self.encoded)]

    @property
    def lengths(self) -> I64:
        return self.encoded.lengths

    @property
    def choices(self) -> int:
        return self.encoded.choices

    @property
    def counts(self) -> I64 | None:
        return self.encoded.counts

    def order(self, seed: int, skips: Sequence[tuple[int, int]]) -> Order:
        return Order(self.sizes, None, seed, skips)

    def fingerprint(self, seed: int) -> str:
        digest = hashlib.sha256()
        one = self.encoded
        for array in (one.tokens, one.segments, one.starts, one.answers):
            digest.update(np.ascontiguousarray(array).tobytes())
        return sha256_json(["task", one.kind, digest.hexdigest(), ORDER_VERSION, seed])

    def batch(self, places: Places, seed: int, purpose: str) -> Batch:
        """Nothing about them is random. Padded to the longest of them."""
        return self.take(places.row)

    def micro_batches(self, places: Places, size: int, seed: int, purpose: str) -> list[Batch]:
        """Short rows with short ones, so that little is padded: the gradient does not depend on how a step is split.
        Which micro-batch comes last, and is looked at for the log, is left to chance."""
        by_length = np.argsort(self.lengths[places.row], kind="stable")
        parts = [by_length[start : start + size] for start in range(0, len(by_length), size)]
        return [self.take(places.row[part]) for part in sorted(parts, key=lambda part: int(part[0]))]

    def answered(self, number: int) -> Batch:
        """So many examples that somebody has answered, from all over the file."""
        answers = self.encoded.answers.reshape(len(self.encoded), -1)
        known = np.flatnonzero(~np.isnan(answers).any(-1))
        return self.take(known[np.linspace(0, len(known) - 1, min(number, len(known))).astype(np.int64)])

    def take(self, examples: I64) -> Batch:
        """The examples of these numbers."""
        one = self.encoded
        rows = (examples[:, None] * one.choices + np.arange(one.choices)).ravel()
        starts, stops = one.starts[rows], one.starts[rows + 1]
        lengths = stops - starts
        width = -(-int(lengths.max(initial=1)) // WIDTH_UNIT) * WIDTH_UNIT
        width = max(int(lengths.max(initial=1)), min(width, self.sequence_length))
        ids = np.full((len(rows), width), one.padding, dtype=np.int64)
        segments = np.zeros((len(rows), width), dtype=np.int64)
        mask = np.arange(width) < lengths[:, None]
        index = np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])
        ids[mask], segments[mask] = one.tokens[index], one.segments[index]
        labels = np.full((len(rows), width), IGNORE, dtype=np.int64)
        answers = one.answers[examples]
        more: dict[str, Any] = {}
        if one.kind == "span":
            more["spans"] = torch.from_numpy(answers.astype(np.int64))
        else:
            unknown = np.isnan(answers)
            if unknown.any():
                more["unanswered"] = torch.from_numpy(unknown)
            if one.kind == "value":
                more["values"] = torch.from_numpy(answers.astype(np.float32))
                answers = np.zeros_like(answers)
            labels[:: one.choices, 0] = np.where(unknown, IGNORE, answers)
        parts = (torch.from_numpy(array) for array in (ids, mask, segments, labels, rows.astype(np.int64)))
        return Batch(*parts, choices=one.choices, **more)

    def fetch(self, places: Places) -> None:
        """All is near."""
