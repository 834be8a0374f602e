"""Which rank this process is, and the few collectives the loop is made of."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_lane: ContextVar[dist.ProcessGroup | None] = ContextVar("lane", default=None)
"""The group whose collectives this thread uses; None: the default one."""


@dataclass(frozen=True)
class World:
    """This process's place among all processes of the run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def from_environment(environ: dict[str, str] | None = None) -> World:
    """Rank, size, local rank, as torchrun and the deepspeed launcher (RANK) or srun (SLURM_PROCID) set them."""
    env = dict(os.environ) if environ is None else environ
    if "RANK" in env:
        return World(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0)))
    if "SLURM_PROCID" in env and "SLURM_STEP_ID" in env:
        return World(int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env.get("SLURM_LOCALID", 0)))
    return World()


def meet(world: World, timeout_seconds: float) -> dist.Store:
    """Where all ranks that were started can leave word for one another, before they form groups."""
    timeout = timedelta(seconds=timeout_seconds)
    return next(iter(dist.rendezvous("env://", world.rank, world.size, timeout=timeout)))[0]


def connect(world: World, timeout_seconds: float, store: dist.Store | None = None) -> torch.device:
    """Join the process group (gloo on CPU; nccl beside gloo on GPU) and return this rank's device.

    DeepSpeed adopts the group; it is never left to guess (it would try mpi4py under srun).

    Args:
        store: where the ranks have met already; None: they meet at MASTER_ADDR:MASTER_PORT.
    """
    os.environ.update(RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(world.local_rank))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if world.size == 1:
        os.environ.setdefault("MASTER_PORT", "0")
    device = device_of(world)
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=timeout_seconds)
    if world.size == 1:
        store = dist.HashStore()
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=timeout)
    return device


def device_of(world: World) -> torch.device:
    """This rank's: a GPU, unless there is none or DS_ACCELERATOR=cpu says to leave it alone."""
    if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu":
        # srun --gpus-per-task=1 shows every task one device, whatever its local rank
        return torch.device("cuda", world.local_rank % torch.cuda.device_count())
    return torch.device("cpu")


def best_device() -> torch.device:
    """For work outside a run: the GPU, unless there is none or DS_ACCELERATOR=cpu says to leave it alone."""
    gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    return torch.device("cuda" if gpu else "cpu")


def disconnect() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def new_lane(timeout_seconds: float) -> dist.ProcessGroup | None:
    """A second group of all ranks, for a thread beside the training loop; None where there is one rank only."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    return dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))


@contextmanager
def lane(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Inside, this thread's collectives use `group`, so that they never meet those of another thread."""
    before = _lane.set(group)
    try:
        yield
    finally:
        _lane.reset(before)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The element-wise sum of a CPU tensor over all ranks (in place; float64 keeps counts exact)."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values, group=_lane.get())
    return values


def gather_objects(value: Any) -> list[Any]:
    """`value` of every rank, in rank order, on every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value, group=_lane.get())
    return gathered


def barrier() -> None:
    """Wait until every rank is here."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier(group=_lane.get())
