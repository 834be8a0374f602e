"""The step's one small all-reduce: this step's counts, what the previous step summed up to, and whether to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megadistill.core.dist import sum_over_ranks
from megadistill.core.together import rank_and_size
from megadistill.core.types import COUNT_KINDS
from megadistill.engine.deepspeed import Update
from megadistill.train.stop import BITS


@dataclass
class Done:
    """What one step did on this rank; the next step's exchange tells it to all."""

    step: int
    counts: Tensor
    """[len(COUNT_KINDS)] of the whole global batch."""
    sums: Tensor
    """[num objectives] of this rank; on its device."""
    seen: dict[str, Tensor]
    """Log name -> [2], a sum on this rank and the number it is to be divided by; the same names on every rank."""
    update: Update
    seconds: float
    waited: float
    """Of these, for the batch."""
    forward_seconds: Callable[[], float]
    """Asked once the sums have come off the device, so that it need not wait."""
    learning_rate: float
    parameter_hash: str | None = None


@dataclass(frozen=True)
class Report:
    """What one step did on all ranks."""

    step: int
    losses: dict[str, float]
    """Objective label -> mean over its count."""
    loss: float
    """Their weighted sum: what was minimised."""
    seen: dict[str, float]
    """Log name -> a mean that nothing learns from."""
    tokens: int
    seconds: float
    """Mean over ranks."""
    waited: float
    """Of these, for the batch; mean over ranks."""
    forward_seconds: list[float]
    """Of each rank, in its forward passes."""
    learning_rate: float
    gradient_norm: float
    applied: bool
    finite: bool
    parameter_hash: str | None

    def values(self) -> dict[str, float]:
        """By the names that logs use."""
        values = {"train/loss": self.loss}
        values |= {f"train/objective/{label}": value for label, value in self.losses.items()}
        values |= self.seen
        values["train/learning_rate"] = self.learning_rate
        values["train/gradient_norm"] = self.gradient_norm
        values["train/tokens_per_second"] = self.tokens / self.seconds
        values["train/step_seconds"] = self.seconds
        values["train/data_wait"] = self.waited / self.seconds
        return values


@dataclass
class Ledger:
    """Carries one step's outcome to the next step's exchange."""

    labels: list[str]
    weights: Callable[[int], list[float]]
    """Of all objectives at a step."""
    count_of: dict[str, str]
    """Objective label -> count kind; filled by the first forward."""
    pending: Done | None = field(default=None)

    def exchange(self, counts: Tensor, word: int) -> tuple[Tensor, Report | None, int]:
        """One all-reduce of a few numbers; everything that can change control flow goes through it, so that ranks never
        part ways.

        Args:
            counts: [len(COUNT_KINDS)] float64 of this rank's micro-batches.
            word: what this rank wants: bits of `stop.BITS`.

        Returns:
            the counts of the global batch, the previous step's report, and the union of all ranks' words.
        """
        done, (rank, size) = self.pending, rank_and_size()
        self.pending = None
        wishes = torch.tensor([float(bool(word & bit)) for bit in BITS], dtype=torch.float64)
        sums, seen = torch.zeros(len(self.labels), dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
        seconds, forward = torch.zeros(2, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        if done is not None:
            sums, *pairs = (part.double().cpu() for part in (done.sums, *done.seen.values()))
            seen = torch.cat([seen, *pairs])
            seconds[0], seconds[1], forward[rank] = done.seconds / size, done.waited / size, done.forward_seconds()
        told = [counts, wishes, sums, seen, seconds, forward]
        total = sum_over_ranks(torch.cat(told)).split([len(part) for part in told])
        union = sum(bit for bit, wish in zip(BITS, total[1].tolist(), strict=True) if wish)
        return total[0], None if done is None else self._report(done, *(part.tolist() for part in total[2:])), union

    def _report(
        self, done: Done, sums: list[float], seen: list[float], seconds: list[float], forward: list[float]
    ) -> Report:
        counts: dict[str, float] = dict(zip(COUNT_KINDS, done.counts.tolist(), strict=True))
        losses = {
            label: value / max(counts[self.count_of[label]], 1.0)
            for label, value in zip(self.labels, sums, strict=True)
        }
        loss = sum(weight * losses[label] for label, weight in zip(self.labels, self.weights(done.step), strict=True))
        return Report(
            step=done.step,
            losses=losses,
            loss=loss,
            seen={
                name: part / whole for name, part, whole in zip(done.seen, seen[::2], seen[1::2], strict=True) if whole
            },
            tokens=int(counts["tokens"]),
            seconds=seconds[0],
            waited=seconds[1],
            forward_seconds=forward,
            learning_rate=done.learning_rate,
            gradient_norm=done.update.gradient_norm,
            applied=done.update.applied,
            finite=math.isfinite(loss),
            parameter_hash=done.parameter_hash,
        )
