"""The first real step is the rehearsal of the plan: what was estimated is compared with what the allocator held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from megadistill.core.errors import UserError
from megadistill.core.types import Batch
from megadistill.run.config import RunConfig


def compare(config: RunConfig, ranks: int, device: torch.device, micro_batches: Sequence[Batch]) -> dict[str, Any]:
    """Bytes at the peak so far on this rank, `estimated` (for rows as wide as the widest of these `micro_batches`: a
    task's are rarely full) and `measured`; empty where no allocator counts (CPUs)."""
    if device.type != "cuda":
        return {}
    from megadistill.plan.estimate import measure  # at start-up nobody needs it

    measured = torch.cuda.max_memory_allocated(device)
    try:
        _, found = measure(config, ranks, max(batch.ids.shape[1] for batch in micro_batches))
    except UserError as error:  # a plan cannot tell of every run
        return {"measured": measured, "no_estimate": error.what}
    except Exception as error:  # nor may a run end for an estimate
        return {"measured": measured, "no_estimate": f"{type(error).__name__}: {error}"}
    return {"measured": measured, "estimated": found.peak}


def line(found: dict[str, Any]) -> str:
    """For the console; empty where nothing was compared."""
    if "estimated" not in found:
        return ""
    measured, estimated = found["measured"], found["estimated"]
    return (
        f"memory at the peak of step 1: {measured / 1e9:.2f} GB on this GPU, planned {estimated / 1e9:.2f} "
        f"({estimated / measured - 1:+.0%})"
    )
