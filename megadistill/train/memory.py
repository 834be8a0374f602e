"""What is told when memory runs out: the largest parts, and the setting that fits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from megadistill.core.dist import World
from megadistill.core.errors import Exit, UserError
from megadistill.run.config import RunConfig
from megadistill.train.watchdog import Watchdog


class OutOfMemory(UserError):
    """A rank asked for more than there is."""


@contextmanager
def explained(
    config: RunConfig, world: World, device: torch.device, watchdog: Watchdog | None = None
) -> Iterator[None]:
    """
    Args:
        watchdog: knows the step; None: there is none yet. Once a whole one went well, the same run may fit another
            time, and it is a crash.

    Raises:
        OutOfMemory: in place of what torch raised.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        where = "before the first step" if watchdog is None else f"in {watchdog.doing}"
        told = _told(f"memory ran out on rank {world.rank} {where}", _asked(error), config, world, device)
        told.exit_code = Exit.CRASH if watchdog is not None and watchdog.longest_step > 0 else Exit.USER_ERROR
        raise told from error


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that a device or the system has no more memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def too_large(config: RunConfig, world: World, device: torch.device, needed: str, room: float) -> OutOfMemory:
    """What is told when not even the smallest micro-batch fits, although the allocator did give it out."""
    what = "not even the smallest micro-batch fits into memory"
    why = f"{needed} beside what a rank holds between steps, and {room / 1e9:.3g} GB are free to use"
    return _told(what, why, config, world, device)


def _told(what: str, why: str, config: RunConfig, world: World, device: torch.device) -> OutOfMemory:
    lines = [why]
    fix = "set engine.activation_checkpointing: true, or a higher engine.zero_stage on more ranks"
    if config.batch.rows_per_pass > 1:
        fix = "halve batch.micro_size (the gradient stays the same), or set engine.activation_checkpointing: true"
    memory = _ours(device)
    try:
        from megadistill.plan.estimate import cheapest, measure  # at start-up nobody needs it
        from megadistill.plan.machine import Machine
        from megadistill.plan.page import readable

        _, found = measure(config, world.size)
        largest = sorted(found.parts.items(), key=lambda part: part[1], reverse=True)[:3]
        lines.append("planned for a GPU: " + ", ".join(f"{name} {readable(size)}" for name, size in largest))
        lines[-1] += f", {readable(found.peak)} at the peak"
        if memory is not None:
            lines.append(f"{readable(memory)} of {device} are this process's to use")
            if change := cheapest(config, Machine(world.size + config.teacher_ranks, memory, 0.0)):
                fix = f"fits by the plan: {change}"
    except Exception as unplanned:  # a plan cannot tell of every run, and must not hide what happened
        lines.append(f"(no plan: {unplanned.what if isinstance(unplanned, UserError) else unplanned!r})")
    return OutOfMemory(what, "\n  ".join(lines), fix)


def _asked(error: BaseException) -> str:
    asked = re.search(r"tried to allocate [\d.]+ ?\w+", str(error), re.IGNORECASE)
    return asked.group() if asked else f"{type(error).__name__}: {error}"


def _ours(device: torch.device) -> float | None:
    """Bytes of the GPU that other processes leave; None on a CPU, whose memory all ranks share."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return float(free + torch.cuda.memory_reserved(device))
