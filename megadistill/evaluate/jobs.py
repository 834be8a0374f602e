"""How do several runs share one machine? Each has its share of the cores, and of the GPUs one, where there are some."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
Share = Mapping[str, str]
"""Environment variables."""


def side_by_side(work: Callable[[Item, Share], Result], items: Sequence[Item], jobs: int) -> Iterator[Result]:
    """What `work(item, share)` gives for each of the items, in their order; at most `jobs` of them are at work.

    Raises:
        whatever one of them raised, once those that had begun have ended; no other is begun.
    """
    free: SimpleQueue[Share] = SimpleQueue()
    for share in shares(jobs):
        free.put(share)

    def one(item: Item) -> Result:
        share = free.get()
        try:
            return work(item, share)
        finally:
            free.put(share)

    pool = ThreadPoolExecutor(jobs)
    try:
        yield from pool.map(one, items)
    finally:
        pool.shutdown(cancel_futures=True)


def shares(jobs: int) -> list[Share]:
    """Of each of so many runs; one alone has what this process has."""
    if jobs == 1:
        return [{}]
    threads = {"OMP_NUM_THREADS": str(max(len(os.sched_getaffinity(0)) // jobs, 1))}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    gpus = [gpu for gpu in visible.split(",") if gpu]
    return [{**threads, **({"CUDA_VISIBLE_DEVICES": gpus[job % len(gpus)]} if gpus else {})} for job in range(jobs)]
