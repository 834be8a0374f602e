"""What one rank finds out about its own machine, for the ranks to be compared with each other."""

from __future__ import annotations

import hashlib
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megadistill.core import seeds
from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.core.files import sha256_json
from megadistill.data.stream import Stream
from megadistill.run import environment
from megadistill.run.build import train_rows
from megadistill.run.config import RunConfig, dump

SAMPLE_ROWS = 16
"""Read from all over the data, the same ones on every rank."""
_SIZE = 512
_HARDWARE = ("gpu", "cpu", "cpu capability", "threads", "world size")
"""May differ between the nodes of one job; what computes the same is compared by its results."""


def host() -> str:
    """This node's name, as Slurm calls it where there is one: so it can be excluded."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def probe(config: RunConfig, world: World, device: torch.device) -> dict[str, Any]:
    """Everything that is looked at, as plain values; takes a few seconds.

    Raises:
        UserError: the data is not there, or damaged.
    """
    facts = environment.describe(world.size)
    return {
        "rank": world.rank,
        "host": host(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else environment.processor(),
        "gpus": len(facts["gpus"]),
        "software": {name: value for name, value in facts["numerics"].items() if name not in _HARDWARE},
        "config": sha256_json(dump(config)),
        "matmul": matmul_hash(device),
        "busy_memory": _busy_memory(device),
        "rows": _rows(config, world),
        **_disk(config.directory),
    }


def matmul_hash(device: torch.device) -> str:
    """Of a bf16 product of fixed matrices [512, 512]: equal devices must agree to the last bit, sick ones do not."""
    generator = torch.Generator().manual_seed(seeds.derive(0, "preflight"))
    left, right = (torch.randn(_SIZE, _SIZE, generator=generator).bfloat16().to(device) for _ in range(2))
    product = (left @ right).cpu()
    return hashlib.sha256(product.view(torch.int16).numpy().tobytes()).hexdigest()[:16]


def clock() -> float:
    """Seconds since 1970; to be asked on all ranks at once."""
    return time.time()


def _busy_memory(device: torch.device) -> float:
    """The share of the GPU's memory that others hold."""
    if device.type != "cuda":
        return 0.0
    free, total = torch.cuda.mem_get_info(device)
    return 1 - free / total


def _rows(config: RunConfig, world: World) -> str:
    """A hash of a few rows from all over the data, the same ones on every rank, read from this rank's disk."""
    if config.task is not None:  # variants of its examples are made when training starts
        config = config.model_copy(update={"task": config.task.model_copy(update={"augment": None})})
    try:
        one = World()  # not this rank's share
        stream = Stream(train_rows(config), one, 1, 1, config.seed)
    except UserError as error:
        return f"unreadable: {error.what}"
    spread = np.linspace(0, stream.rows_per_epoch - 1, SAMPLE_ROWS).astype(np.int64)
    batch = stream.part.batch(stream.order.locate(spread), config.seed, "targets")
    return hashlib.sha256(batch.ids.numpy().tobytes() + batch.labels.numpy().tobytes()).hexdigest()[:16]


def _disk(directory: Path) -> dict[str, Any]:
    """Free space and inodes where the run will write, and the seconds that a small flushed write takes there."""
    existing = next(parent for parent in (directory.absolute(), *directory.absolute().parents) if parent.exists())
    facts = os.statvfs(existing)
    trial = existing / f".preflight-{host()}-{os.getpid()}"
    started = time.perf_counter()
    try:
        with open(trial, "wb") as file:
            file.write(bytes(2**20))
            file.flush()
            os.fsync(file.fileno())
        problem = ""
    except OSError as error:
        problem = str(error)
    finally:
        trial.unlink(missing_ok=True)
    return {
        "disk": str(existing),
        "disk_free_gb": facts.f_bavail * facts.f_frsize / 1e9,
        "inodes_free": facts.f_favail if facts.f_files else None,
        "write_seconds": time.perf_counter() - started,
        "write_problem": problem,
    }
