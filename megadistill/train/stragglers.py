"""Which rank is slow: by the time its forward passes take, where nobody waits for anybody."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

FACTOR, STEPS = 1.5, 20
"""A rank that takes so many times the median in so many steps in a row is reported, once an attempt."""


class Stopwatch:
    """Sums the seconds between `start` and `stop`, on the device's own clock: the host never waits for a GPU.

    (ZeRO 3 gathers parameters in the forward pass, so there the ranks wait for each other and all look alike.)
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []

    def start(self) -> None:
        self._spans.append((self._now(), None))

    def stop(self) -> None:
        begun, _ = self._spans.pop()
        self._spans.append((begun, self._now()))

    def seconds(self) -> float:
        """All spans so far, which are then forgotten; on a GPU to be asked after its work has been waited for."""
        spans, self._spans = self._spans, []
        if self._cuda:
            return sum(begun.elapsed_time(ended) for begun, ended in spans) / 1000
        return sum(ended - begun for begun, ended in spans)

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Stragglers:
    """Watches all ranks' seconds, step by step."""

    def __init__(self) -> None:
        self._in_a_row: dict[int, int] = {}
        self._told: set[int] = set()

    def look(self, seconds: Sequence[float]) -> list[tuple[int, float]]:
        """
        Args:
            seconds: of each rank, in one step.

        Returns:
            (rank, times the median) of those that are to be reported now.
        """
        median = statistics.median_low(seconds)
        slow = {rank: value / median for rank, value in enumerate(seconds) if median and value > FACTOR * median}
        self._in_a_row = {rank: self._in_a_row.get(rank, 0) + 1 for rank in slow}
        told = [rank for rank, times in self._in_a_row.items() if times >= STEPS and rank not in self._told]
        self._told.update(told)
        return [(rank, slow[rank]) for rank in told]
