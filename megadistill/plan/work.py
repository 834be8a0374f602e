"""What a run computes, sends, reads and writes, and how long that takes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from megadistill.data.order import BatchSizes
from megadistill.engine.deepspeed import MOST_GATHERED
from megadistill.plan.footprint import Footprint
from megadistill.plan.machine import Machine
from megadistill.plan.rows import Counted
from megadistill.plan.zero import DTYPES
from megadistill.run.config import RunConfig

MASTER_AND_MOMENTS = 12
"""Bytes a parameter of fp32 weights and AdamW's two moments."""


@dataclass(frozen=True)
class Work:
    """Of a whole run."""

    steps: int
    epochs: float | None
    """How often a task's examples are seen; None: pretraining, whose shards need not be there."""
    tokens_per_step: int
    """Of a global batch, at the first step: all positions of a row of text, a task's without what pads them."""
    tokens: int
    """Of all steps; so many images, where rows are images."""
    flops: float
    """Of teacher and student, forward and backward, of all steps."""
    seconds: float | None
    """None where neither a rate was measured nor the machine's peak is known."""
    tokens_per_second: float | None

    @property
    def step_seconds(self) -> float | None:
        return None if self.seconds is None else self.seconds / self.steps


def work(config: RunConfig, footprint: Footprint, machine: Machine, rows: Counted | None) -> Work:
    """Count it.

    Args:
        footprint: of a micro-batch of usual rows: full ones, or a task's of `rows.typical` positions.
        rows: a task's.
    """
    sizes = BatchSizes(config.batch.global_size, config.batch.later_sizes)
    start, last = sizes.span(config.steps - 1)
    examples, epochs = start + last, None
    flops, length = footprint.flops / config.batch.rows_per_pass * examples, float(config.sequence_length)
    if rows is not None:
        flops *= rows.width / rows.typical
        length, epochs = rows.each * rows.tokens, examples / rows.examples
    tokens = round(examples * length)
    rate = machine.tokens_per_second
    if rate is None and machine.peak:
        rate = tokens / (flops / (machine.gpus * machine.peak * machine.mfu))
    of_step = round(sizes.span(0)[1] * length)
    return Work(config.steps, epochs, of_step, tokens, flops, rate and tokens / rate, rate)


def checkpoint_bytes(config: RunConfig, trainable: int, parameters: int) -> int:
    """One checkpoint: fp32 weights and moments, the weights as they train, and the student for everybody else."""
    master = MASTER_AND_MOMENTS if config.engine.zero_stage or config.engine.precision != "fp32" else 8
    return trainable * (master + DTYPES[config.engine.precision].itemsize) + 4 * parameters


def interval(save_seconds: float, seconds_between_failures: float) -> float:
    """Seconds of work between two checkpoints that lose the least time to saving and to failures together: the first
    order of Young (1974) and Daly (2006), sqrt(2 C M) - C."""
    return max(math.sqrt(2 * save_seconds * seconds_between_failures) - save_seconds, save_seconds)


@dataclass(frozen=True)
class Projection:
    """A step at some number of ranks, each with the same micro-batches as now."""

    ranks: int
    zero_stage: int
    seconds: float
    efficiency: float
    """Computing, over computing and sending; nothing is taken to overlap."""
    sent: float
    """Bytes a rank and step."""


def project(
    config: RunConfig, trainable: int, computing: float, machine: Machine, ranks: int, stage: int
) -> Projection:
    """What a step takes where `computing` seconds of it are computing.

    Sent by a rank of P in rings, of N trainable values: gradients 2 (P-1)/P N once a step at stage 1 and for every
    micro-batch at stage 2 (DeepSpeed reduces whole buckets), (P-1)/P N for every one at stage 3; updated weights
    (P-1)/P N; at stage 3 instead the weights for every micro-batch, twice where the student is too large to stay
    gathered (Rajbhandari et al. 2020, section 7).
    """
    item, wire = (DTYPES[d].itemsize for d in (config.engine.precision, config.engine.communication_dtype))
    accumulation = config.batch.accumulation(config.students(machine.gpus))
    ring = (ranks - 1) / ranks
    reduced = (1 if stage == 3 else 2) * wire * trainable * (accumulation if stage >= 2 else 1)
    gathers = accumulation * (2 if trainable > MOST_GATHERED else 1) if stage == 3 else 1
    sent = ring * (reduced + item * trainable * gathers)
    seconds = computing + sent / machine.link(ranks)
    return Projection(ranks, stage, seconds, computing / seconds, sent)
