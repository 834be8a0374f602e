"""How much memory this process may still take, and the most that it took."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

_UNLIMITED = 2**60
_RESET_PEAK = "5"
"""Linux forgets a process's peak (VmHWM) when this is written to its clear_refs."""


def free(device: torch.device) -> float:
    """Bytes that nobody holds: of a GPU; of this machine, within the limits (cgroups) that hold for all of a job's
    processes on it. What other processes of the run will take of it is for the caller to leave."""
    give_back(device)
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    there = dict(_pairs(Path("/proc/meminfo")))
    return float(min([there.get("MemAvailable", _UNLIMITED), *_left_by_groups()]))


def allowed(device: torch.device) -> float:
    """Bytes that this process may take besides, by limits of its own (`ulimit -d` and `-v`); a GPU has no such."""
    if device.type == "cuda":
        return _UNLIMITED
    mine = dict(_pairs(Path("/proc/self/status")))
    limits = {"VmData": resource.RLIMIT_DATA, "VmSize": resource.RLIMIT_AS}
    left = [_UNLIMITED]
    for name, number in limits.items():
        soft, _ = resource.getrlimit(number)
        if soft != resource.RLIM_INFINITY and name in mine:
            left.append(soft - mine[name])
    return float(max(min(left), 0))


def forget_peak(device: torch.device) -> None:
    """What has been held so far counts in no later peak of a GPU's allocator."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


class Peak:
    """The most that this process has held since it was made, beyond what it held then. On a CPU only one is to be in
    use at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        give_back(device)
        forget_peak(device)
        if device.type == "cuda":
            self._before = torch.cuda.memory_reserved(device)
        else:
            with suppress(OSError):  # then older peaks count too, which is too much rather than too little
                Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
            self._before = dict(_pairs(Path("/proc/self/status")))["VmRSS"]

    def bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device) - self._before
        return dict(_pairs(Path("/proc/self/status")))["VmHWM"] - self._before


def give_back(device: torch.device) -> None:
    """Let others have what allocators only keep for later."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):  # not every C library keeps anything
        ctypes.CDLL(None).malloc_trim(0)


def _pairs(path: Path) -> Iterator[tuple[str, int]]:
    """`Name:  123 kB` of the kernel's tables, in bytes."""
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB":
            yield name, int(words[0]) * 1024


def _left_by_groups() -> Iterator[int]:
    """What each cgroup that this process is in, or that holds such a one, has left; what files are cached counts as
    left. Both versions of cgroups; groups that cannot be seen from here are passed over."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, used, cached = Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root = Path("/sys/fs/cgroup/memory")
            limit, used, cached = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
        else:
            continue
        inner = root / path.lstrip("/")
        for group in (inner, *inner.parents):
            with suppress(OSError, ValueError):  # not there, or "max"
                statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                most, now = int((group / limit).read_text()), int((group / used).read_text())
                if most < _UNLIMITED:
                    yield max(most - now + int(statistics.get(cached, 0)), 0)
            if group == root:
                break
