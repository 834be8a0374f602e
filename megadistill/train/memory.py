"""What is told when memory runs out: the largest parts, and the setting that fits."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from megadistill.core.dist import World
from megadistill.core.errors import Exit, UserError
from megadistill.run.config import RunConfig

_HALVE = "halve batch.micro_size (the gradient stays the same), or set engine.activation_checkpointing: true"


class OutOfMemory(UserError):
    """A rank asked for more than there is."""


@contextmanager
def explained(config: RunConfig, world: World, device: torch.device, trained: Callable[[], bool]) -> Iterator[None]:
    """
    Args:
        trained: whether a whole step went well before; then the same run may fit another time, and it is a crash.

    Raises:
        OutOfMemory: in place of what torch raised.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _ran_out(error):
            raise
        told = _explain(error, config, world, device)
        told.exit_code = Exit.CRASH if trained() else Exit.USER_ERROR
        raise told from error


def _ran_out(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _explain(error: BaseException, config: RunConfig, world: World, device: torch.device) -> OutOfMemory:
    what = f"memory ran out on rank {world.rank}"
    asked = re.search(r"tried to allocate [\d.]+ ?\w+", str(error), re.IGNORECASE)
    why = [asked.group() if asked else f"{type(error).__name__}: {error}"]
    fix = _HALVE
    memory = _ours(device)
    try:
        from megadistill.plan.estimate import cheapest, measure  # at start-up nobody needs it
        from megadistill.plan.machine import Machine
        from megadistill.plan.page import readable

        _, found = measure(config, world.size)
        largest = sorted(found.parts.items(), key=lambda part: part[1], reverse=True)[:3]
        why.append("planned for a GPU: " + ", ".join(f"{name} {readable(size)}" for name, size in largest))
        why[-1] += f", {readable(found.peak)} at the peak"
        if memory is not None:
            why.append(f"{readable(memory)} of {device} are this process's to use")
            if change := cheapest(config, Machine(world.size + config.teacher_ranks, memory, 0.0)):
                fix = f"fits by the plan: {change}"
    except Exception as unplanned:  # a plan cannot tell of every run, and must not hide what happened
        why.append(f"(no plan: {unplanned.what if isinstance(unplanned, UserError) else unplanned!r})")
    return OutOfMemory(what, "\n  ".join(why), fix)


def _ours(device: torch.device) -> float | None:
    """Bytes of the GPU that other processes leave; None on a CPU, whose memory all ranks share."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return float(free + torch.cuda.memory_reserved(device))
