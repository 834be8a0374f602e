"""How many rows a pass can take (`batch.micro_size: auto`): measured in whole steps before a run begins, then kept."""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from megadistill.core import log
from megadistill.core.dist import World, gather_objects
from megadistill.core.memory import Peak, allowed, forget_peak, free, give_back
from megadistill.core.together import on_main
from megadistill.core.types import Batch
from megadistill.data.stream import Stream
from megadistill.objectives.step import DistillStep
from megadistill.run.build import Parts, build
from megadistill.run.config import RunConfig
from megadistill.run.directory import RunDirectory
from megadistill.tasks.rows import TaskRows
from megadistill.train import held_out, memory
from megadistill.train.accumulate import accumulate
from megadistill.train.job import spread_teacher, wrap
from megadistill.train.stragglers import Stopwatch

USABLE = 0.9
"""Share of what is free that may be taken: rows differ, and allocators cannot fill all."""

OFF = {"cpu": 0.05, "cuda": 0.0}
"""Share by which measured bytes may be off: a C library's heap is more or less in pieces (the same step took 0.050 to
0.056 GB in 30 processes), while PyTorch's GPU allocator counts its own."""


def settled(config: RunConfig, world: World, device: torch.device, fresh: bool) -> RunConfig:
    """The config with a number for `auto`, the same one on every rank: what the run has begun with, or the most that
    fits. At another number of ranks it is the nearest below that divides a rank's share. The gradient does not depend
    on it; a resumed run keeps it all the same, so that it goes on bit for bit.

    Raises:
        UserError: not even the smallest fits, or what `build` refuses.
    """
    if config.batch.micro_size != "auto":
        return config
    choices = config.micro_sizes(world.size)
    known = on_main("read run.json", lambda: RunDirectory.micro_size(config, fresh))
    if known is not None:
        return config.with_micro_size(max((rows for rows in choices if rows <= known), default=choices[0]))
    started = time.perf_counter()
    found = _measured(config, choices, world, device)
    gc.collect()
    give_back(device)  # the run begins with what it would have had
    forget_peak(device)
    log.get().info(
        f"batch.micro_size: auto is {found.rows} ({', '.join(found.tried)}; "
        f"{found.room / 1e9:.3g} GB were free to use; {time.perf_counter() - started:.0f} s)"
    )
    return config.with_micro_size(found.rows)


@dataclass(frozen=True)
class Need:
    """Bytes beyond those that a rank holds between two steps, the most on any rank."""

    passes: int
    """In forward and backward passes: these grow with the rows."""
    step: int
    """In the whole step."""


def largest(
    choices: Sequence[int], probe: Callable[[int], Need | None], room: float, dares: bool, off: float = 0.0
) -> int:
    """The most rows that fit, by trying: twice as many each time as long as a line through what was measured stays
    within `room`, then as many less as it takes.

    Args:
        choices: numbers of rows, ascending.
        probe: what a step with so many rows needs; None: it could not be made, and no more can be tried.
        room: bytes.
        dares: try the second number although nothing tells that it fits (where too much is an error, not a kill).
        off: share by which what `probe` tells may be off, either way.

    Returns:
        one of `choices`; 0 where none fits.
    """
    known: dict[int, Need] = {}
    best, behind, rows = 0, choices[-1] + 1, choices[0]
    while rows:
        need = probe(rows)
        if need is None:
            break
        known[rows] = need
        if need.step <= room:
            best = rows
        else:
            behind = rows
        between = [one for one in choices if best < one < behind] if best else []
        fitting = [one for one in between if _bound(one, known, off) <= room]
        rows = max((one for one in fitting if one <= 2 * best), default=0)
        if not rows and between and (between[0] in fitting or (dares and len(known) == 1)):
            rows = between[0]
    return best


def _bound(rows: int, known: dict[int, Need], off: float) -> float:
    """What so many rows will need at most: passes grow in a line whose constant part is not negative."""
    *_, (most, need) = sorted(known.items())
    below = max((one for one in known if one < most), default=None)
    start, base = (0, 0) if below is None else (below, known[below].passes)
    slope = max((1 + off) * need.passes - (1 - off) * base, 0) / (most - start)
    flat = min(one.step for one in known.values())
    return max(need.passes + slope * (rows - most), flat)


@dataclass(frozen=True)
class _Found:
    rows: int
    tried: list[str]
    room: float


def _measured(config: RunConfig, choices: Sequence[int], world: World, device: torch.device) -> _Found:
    trial = config.with_micro_size(choices[0])
    with memory.explained(trial, world, device):
        parts = build(trial, world, device)
        prober = _Prober(trial, parts, world, device)
        try:
            prober.step(choices[0])  # from here on the optimizer's state is there
            room = prober.room()
            dares = device.type == "cuda" and world.size == 1  # what runs out on one of several ranks ends the run
            rows = largest(choices, prober.need, room, dares, OFF[device.type])
        finally:
            prober.engine.close()
    if not rows:
        raise memory.too_large(trial, world, device, prober.tried[0], room)
    return _Found(rows, prober.tried, room)


class _Prober:
    """Makes steps that change no weight."""

    def __init__(self, config: RunConfig, parts: Parts, world: World, device: torch.device) -> None:
        self.config, self.parts, self.world, self.device = config, parts, world, device
        step = DistillStep(parts.student, config.objectives, parts.losses)
        self.engine = wrap(config, parts, device, step)
        spread_teacher(parts, device, world)
        self.rows = _widest(parts.stream)
        self.tried: list[str] = []
        self._fitted = 0

    def room(self) -> float:
        """Bytes that each rank may take, the fewest on any rank."""
        where = (socket.gethostname(), str(self.device) if self.device.type == "cuda" else "")
        places = gather_objects(where)
        mine = min(free(self.device) / places.count(where), allowed(self.device))
        return USABLE * min(gather_objects(mine))

    def need(self, rows: int) -> Need | None:
        """As `largest` asks.

        Raises:
            UserError: memory ran out on one of several ranks, which cannot be told to those that wait for it.
        """
        try:
            mine = self.step(rows)
        except (RuntimeError, MemoryError) as error:
            if not self._fitted or not memory.ran_out(error):
                raise
            if self.world.size > 1:
                raise memory.OutOfMemory(
                    f"memory ran out on rank {self.world.rank} while batch.micro_size was measured",
                    f"{rows} rows a pass did not fit, {self._fitted} did",
                    f"set batch.micro_size: {self._fitted}",
                ) from error
            self.tried.append(f"{rows} rows: out of memory")
            return None
        every = gather_objects((mine.passes, mine.step))
        need = Need(max(passes for passes, _ in every), max(step for _, step in every))
        self.tried.append(f"{rows} rows: {need.step / 1e9:.3g} GB")
        self._fitted = rows
        return need

    def step(self, rows: int) -> Need:
        """What a step of two such micro-batches (one, where the rank's share is no more) takes on this rank."""
        config, engine = self.config, self.engine
        batches = self.rows.split(rows)[:2]
        counts = torch.stack([batch.counts() for batch in batches]).sum(0) * self.world.size
        engine.accumulate_over(len(batches))
        peak = Peak(self.device)
        accumulate(
            engine,
            self.parts.teacher,
            batches,
            counts,
            step=1,
            seed=config.seed,
            check_ranks=False,
            stopwatch=Stopwatch(self.device),
            watch=True,
            share_gradients=config.log.gradient_shares_every_steps is not None,
        )
        passes = peak.bytes()
        engine.step(0.0)
        teacher = self.parts.teacher
        held_out.evaluate(engine, teacher if teacher is not None and teacher.models else None, batches[:1], self.device)
        return Need(passes, peak.bytes())


def _widest(stream: Stream) -> Batch:
    """The rows of a rank's part of a step: any of a text's, which are equally long; a task's longest."""
    part, places = stream.part, stream.places(0)
    if isinstance(part, TaskRows):
        longest = np.argsort(part.lengths, kind="stable")[::-1]
        return part.take(longest[np.arange(len(places.row)) % len(longest)])
    return part.batch(places, stream.seed, "targets")
