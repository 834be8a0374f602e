"""The plain sections of a run's config: batches, length, checkpoints, held-out evaluation, logs."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from megadistill.core.errors import UserError
from megadistill.core.schema import Strict


class BatchChange(Strict):
    """Another global batch size from a step on."""

    from_step: int = Field(ge=2)
    """The first step of this size; steps are counted from 1."""
    global_size: int = Field(gt=0)
    """Rows per optimizer step from there on."""


class BatchConfig(Strict):
    """How many rows a step sees, whatever the number of ranks."""

    global_size: int = Field(gt=0)
    """Rows per optimizer step, over all ranks and accumulation."""
    micro_size: PositiveInt | Literal["auto"]
    """Rows per rank and forward pass; accumulation follows: global_size / (micro_size x ranks). auto: the most that fit
    into memory, measured in whole steps when the run is first started and kept in its run.json."""
    schedule: list[BatchChange] = Field(default_factory=list)
    """Other global sizes from later steps on (batch size warm-up), such as [{from_step: 1001, global_size: 512}]. The
    learning rate does not follow by itself."""

    @model_validator(mode="after")
    def _changes_follow_one_another(self) -> BatchConfig:
        steps = [change.from_step for change in self.schedule]
        if steps != sorted(set(steps)):
            raise ValueError(f"schedule: each from_step must be larger than the one before, not {steps}")
        return self

    @model_validator(mode="after")
    def _micro_batches_fill_a_step(self) -> BatchConfig:
        """On one rank, where there are the fewest; the number of ranks is not known here."""
        try:
            self.check(1)
        except UserError as error:
            raise ValueError(f"{error.what.removeprefix('batch.')}; {error.fix}") from None
        return self

    @property
    def later_sizes(self) -> list[tuple[int, int]]:
        """(0-based step, rows per step from there on), for `Stream`."""
        return [(change.from_step - 1, change.global_size) for change in self.schedule]

    @property
    def rows_per_pass(self) -> int:
        """`micro_size` as the number that it is wherever something is built (see `train.micro_size`)."""
        assert self.micro_size != "auto", "to be measured first"
        return self.micro_size

    def with_micro_size(self, rows: int) -> BatchConfig:
        return self.model_copy(update={"micro_size": rows})

    def micro_sizes(self, world_size: int) -> list[int]:
        """All micro-batches that `auto` may come to, ascending: they divide each rank's share of every global batch.

        Raises:
            UserError: as `check`.
        """
        self.check(world_size)
        share = math.gcd(self.global_size, *(change.global_size for change in self.schedule)) // world_size
        return [rows for rows in range(1, share + 1) if share % rows == 0]

    def check(self, world_size: int) -> None:
        """
        Raises:
            UserError: a global batch does not divide; names the nearest sizes that do.
        """
        rows = 1 if self.micro_size == "auto" else self.micro_size
        unit = rows * world_size
        sizes = {"global_size": self.global_size}
        sizes |= {f"schedule.{number}.global_size": change.global_size for number, change in enumerate(self.schedule)}
        for name, size in sizes.items():
            if size % unit:
                near = sorted({max(size // unit, 1) * unit, (size // unit + 1) * unit})
                by = f"batch.micro_size x ranks = {rows} x {world_size}" if rows > 1 else f"{world_size} ranks"
                raise UserError(
                    f"batch.{name}: {size} does not divide by {by if world_size > 1 else f'batch.micro_size {rows}'}",
                    "every rank must see the same number of micro-batches",
                    f"nearest global sizes that do: {' or '.join(map(str, near))}",
                )

    def accumulation(self, world_size: int) -> int:
        """Micro-batches per step and rank, before `schedule` changes it.

        Raises:
            UserError: as `check`.
        """
        self.check(world_size)
        return self.global_size // (self.rows_per_pass * world_size)


class TrainConfig(Strict):
    """How long the loop runs and when it gives up."""

    steps: int = Field(gt=0)
    """Optimizer steps."""
    more_steps: list[PositiveInt] = Field(default_factory=list)
    """So many steps more, as in [50000], for a run that has come to its end: the learning rate warms up and decays over
    them anew (warm restart; Loshchilov & Hutter 2017), and nothing before changes. May be added to again."""
    deterministic: bool = False
    """Deterministic GPU algorithms, so that a resumed run is bitwise equal there too (slower). CPU runs always are."""
    max_nonfinite_steps: int = Field(10, ge=1)
    """So many skipped steps in a row are undone: the run goes back and leaves their data out."""
    spike_sigmas: float | None = Field(None, gt=0)
    """A loss so many standard deviations above the mean of the last 100 steps is a spike; None: nobody looks. Not for
    runs whose objectives come and go (`ramp`)."""
    spike_steps: int = Field(10, ge=1)
    """So many spikes in a row are undone."""
    max_rollbacks: int = Field(3, ge=0)
    """Give up (exit code 93) when the run has gone back so often by itself and would have to again."""
    timeout_seconds: float = Field(1800, gt=0)
    """How long a collective may wait for a rank, and how long anything but a step may take, or an attempt's first two
    steps."""
    hang_seconds: float = Field(120, gt=0)
    """A later step that takes longer, and ten times longer than any before but the first, which compiles, ends the run
    with every rank's stacks."""
    max_fruitless_restarts: int = Field(3, ge=1)
    """Give up (exit code 93) when a scheduler has restarted the run so often in a row without a new checkpoint."""


class CheckpointConfig(Strict):
    """When checkpoints are written and which are kept."""

    every_steps: int = Field(1000, gt=0)
    """Between two checkpoints; the first step is saved too."""
    keep: int = Field(2, ge=2)
    """The newest so many; at least 2, since the newest may be the one that fails to verify."""
    keep_every_steps: int | None = Field(None, gt=0)
    """Checkpoints at multiples of this are never deleted."""
    keep_best: bool = False
    """Keep the one with the lowest held-out loss too, of those whose step was evaluated (`evaluate.every_steps`)."""
    copy_to: str | None = None
    """An fsspec url, as in s3://bucket/runs: while training goes on, checkpoints are copied to <copy_to>/<name>, with
    all that the run needs to go on from there when that folder is copied back. Nothing there is ever deleted. At its
    end a run waits for the last copy, for up to half of `train.timeout_seconds`."""
    asynchronous: bool = False
    """Write while training goes on, which then stops only to copy the state to host memory (which must have room for
    it). A kill may cost the steps made during the writing on top of one interval."""


class EvaluateConfig(Strict):
    """Held-out evaluation during training."""

    every_steps: int | None = Field(None, gt=0)
    """None: only at the end."""
    rows: int = Field(512, gt=0)
    """How many held-out rows, over all ranks."""


class LogConfig(Strict):
    """What is written down while training."""

    every_steps: int = Field(10, gt=0)
    """Between two lines in the console and in metrics.jsonl; the first step has one too."""
    tensorboard: bool = True
    """Write the numbers for TensorBoard, below the run directory."""
    services: list[Literal["wandb", "trackio"]] = Field(default_factory=list)
    """Send the numbers there too (pip install megadistill[wandb] or [trackio])."""
    project: str = "megadistill"
    """What `services` file the run under."""
    hash_every_steps: int | None = Field(None, gt=0)
    """Log a hash of all parameters every so many steps (to compare runs bit for bit); None: never."""
    gradient_shares_every_steps: int | None = Field(None, gt=0)
    """Log how the student's gradient divides among the objectives, each one's norm over the sum of their norms, on one
    micro-batch a rank: one more forward pass, and a backward pass an objective. Not at ZeRO 3. None: never."""
    rows: bool = False
    """Log which rows each rank trains on, with hashes of inputs and labels (to audit the data order)."""
