"""The step's one small all-reduce: this step's counts, what the previous step summed up to, and whether to stop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megadistill.core.dist import sum_over_ranks
from megadistill.core.types import COUNT_KINDS
from megadistill.engine.deepspeed import Update
from megadistill.train.stop import SAVE, STOP


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
            word: what this rank wants: STOP, SAVE, both or 0.

        Returns:
            the counts of the global batch, the previous step's report, and the union of all ranks' words.
        """
        done = self.pending
        told = [counts]
        if done is not None:
            told += [part.double().cpu() for part in (done.sums, *done.seen.values())]
        seconds = 0.0 if done is None else done.seconds
        told.append(torch.tensor([seconds, bool(word & STOP), bool(word & SAVE), 1.0], dtype=torch.float64))
        total = sum_over_ranks(torch.cat(told))
        report = self._report(total[len(COUNT_KINDS) :].tolist())
        return total[: len(COUNT_KINDS)], report, STOP * bool(total[-3]) | SAVE * bool(total[-2])

    def _report(self, total: list[float]) -> Report | None:
        done, self.pending = self.pending, None
        if done is None:
            return None
        *told, seconds, _, _, ranks = total
        sums, seen = told[: len(self.labels)], told[len(self.labels) :]
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
            seconds=seconds / ranks,
            learning_rate=done.learning_rate,
            gradient_norm=done.update.gradient_norm,
            applied=done.update.applied,
            finite=math.isfinite(loss),
            parameter_hash=done.parameter_hash,
        )
