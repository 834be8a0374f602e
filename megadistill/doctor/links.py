"""How fast the ranks exchange data, and which host is slow when they do not."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist

from megadistill.core.dist import gather_objects

MEGABYTES, TIMES = 16, 3


def all_reduce_rate(device: torch.device, group: dist.ProcessGroup | None = None) -> float:
    """Gigabytes a second and rank (size of the buffer / time), of the best of a few all-reduces of 16 MB."""
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return float("inf")
    values = torch.ones(MEGABYTES * 2**18, device=device)
    best = float("inf")
    for _ in range(TIMES + 1):  # the first one opens the connections
        started = time.perf_counter()
        dist.all_reduce(values, group=group)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return values.numel() * values.element_size() / best / 1e9


def rounds(hosts: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Two rounds in which every host meets two others (a ring cut into pairs, twice); the last of an odd number meets
    the first."""
    ring = sorted(set(hosts))
    if len(ring) < 2:
        return []
    odd = [(ring[-1], ring[0])] if len(ring) % 2 else []
    first = list(zip(ring[::2], ring[1::2], strict=False))
    second = list(zip(ring[1::2], [*ring[2::2], ring[0]], strict=False))
    return [part for part in (first, second, odd) if part]


def slow_hosts(hosts: Sequence[str], device: torch.device, least: float) -> dict[str, str]:
    """Pair the hosts off and blame those that are slow with every partner; a collective.

    Args:
        hosts: of every rank.
        least: GB/s that a pair must reach.

    Returns:
        host -> what is wrong; under "" when no single host is to blame.
    """
    first_rank = {host: hosts.index(host) for host in hosts}
    mine: list[tuple[str, str, float]] = []
    for pairs in rounds(hosts):
        groups = [(pair, dist.new_group([first_rank[host] for host in pair])) for pair in pairs]
        for pair, group in groups:
            if dist.get_rank() in [first_rank[host] for host in pair]:
                mine.append((*pair, all_reduce_rate(device, group)))
        dist.barrier()
    measured = {(a, b): rate for part in gather_objects(mine) for a, b, rate in part}
    of_host: dict[str, list[float]] = defaultdict(list)
    for (a, b), rate in measured.items():
        of_host[a].append(rate)
        of_host[b].append(rate)
    slow = {host: max(rates) for host, rates in of_host.items() if max(rates) < least}
    if not slow or len(slow) == len(of_host):
        return {"": f"all-reduce is slower than {least} GB/s, and no single host is to blame"}
    return {host: f"its fastest link does {rate:.2f} GB/s, {least} wanted" for host, rate in slow.items()}
