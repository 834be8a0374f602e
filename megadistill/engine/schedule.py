"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from megadistill.core.schema import Strict


class ScheduleConfig(Strict):
    """Linear warm-up, then the named decay until `total_steps`."""

    kind: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    """`wsd` is warm-up, stable, decay: constant until the last `decay_fraction`, then linear."""
    warmup_fraction: float = Field(0.05, ge=0, le=1)
    """Share of `total_steps` spent warming up."""
    decay_fraction: float = Field(0.2, gt=0, le=1)
    """Only for `wsd`: share of `total_steps` spent decaying."""
    floor: float = Field(0.0, ge=0, le=1)
    """The decay ends at this share of the peak."""
    total_steps: int | None = Field(None, gt=0)
    """Where the decay ends; `train.steps` when not given. Later ones stay at the floor (see `train.more_steps`)."""

    @model_validator(mode="after")
    def _there_is_time_to_decay(self) -> ScheduleConfig:
        decay = {"constant": 0.0, "wsd": self.decay_fraction}.get(self.kind)
        left = 1 - self.warmup_fraction
        if (left < decay - 1e-9) if decay is not None else not left:
            raise ValueError(
                f"warmup_fraction: {self.warmup_fraction:g} leaves {left:g} of the steps, and {self.kind} decays in "
                + ("the rest; make it smaller" if decay is None else f"decay_fraction {decay:g}; make one smaller")
            )
        return self


def factor(config: ScheduleConfig, step: int, total_steps: int) -> float:
    """The share of the peak learning rate at 1-based `step`; steps past `total_steps` stay at the floor."""
    warmup = math.ceil(config.warmup_fraction * total_steps)
    if step <= warmup:
        return step / max(warmup, 1)
    if config.kind == "constant":
        return 1.0
    start = warmup
    if config.kind == "wsd":
        start = max(warmup, total_steps - math.ceil(config.decay_fraction * total_steps))
    # step 1 after the start has not decayed yet; the step after the last would reach the floor
    progress = min(max(step - start - 1, 0) / max(total_steps - start, 1), 1.0)
    shape = (1 + math.cos(math.pi * progress)) / 2 if config.kind == "cosine" else 1 - progress
    return config.floor + (1 - config.floor) * shape
