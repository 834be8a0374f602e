"""What the objectives of a run are together: one loss, for which the vocabulary heads are walked over once.

A head loss (soft_ce, hard_ce) does not compute; it says which term it wants, over which positions, and the mixture asks
the heads for all terms in one pass. Any other objective computes its own term. Both can also be called alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from megadistill.core.types import COUNT_KINDS, IGNORE, Batch, HeadName, Signals, Term
from megadistill.kernels.head_losses import Hard, HeadTerm, Projection, Soft, TopK, head_losses
from megadistill.objectives.base import Loss, Ramp

Scope = Literal["tokens", "targets", "asked"]
"""Attended positions, those with a label, or those that a model is asked at."""


@dataclass(frozen=True)
class HeadLoss:
    """A loss between vocabulary heads. Called alone it is an ordinary objective; in a `Mixture` all share one pass."""

    term: HeadTerm
    scope: Scope
    temperature_ramp: Ramp | None = None
    """Multiplies a Soft term's temperature."""

    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        total, _ = ask_heads([self], batch.ids.new_ones(1, dtype=torch.float32), student, teacher, batch, step=1)
        return Term(total, self.scope)

    def term_at(self, step: int) -> HeadTerm:
        """The term at a step, counted from 1."""
        if self.temperature_ramp is None or not isinstance(self.term, Soft):
            return self.term
        return replace(self.term, temperature=self.term.temperature * self.temperature_ramp.at(step))


@dataclass(frozen=True)
class Weighed:
    """One objective in the mixture."""

    label: str
    weight: Callable[[int], float]
    """Of a step, counted from 1."""
    loss: Loss
    head: HeadName | None = None
    """Which of the student's heads it sees; None: its whole answer."""


class Mixture:
    """The objectives of a run, weighed."""

    def __init__(self, parts: Sequence[Weighed]) -> None:
        self.parts = list(parts)
        self.heads: dict[HeadName | None, list[tuple[int, HeadLoss]]] = {}
        """By the student's head: those that are asked of it in one pass, with their numbers."""
        for number, part in enumerate(self.parts):
            if isinstance(part.loss, HeadLoss):
                self.heads.setdefault(part.head, []).append((number, part.loss))
        asked = (one for each in self.heads.values() for one in each)
        self.count_of: dict[str, str] = {self.parts[number].label: loss.scope for number, loss in asked}
        """Objective label -> what its sum runs over; complete after the first call."""
        self.watched: dict[str, Tensor] = {}
        """`label/name` -> [2] what terms had to tell beside their sums, at the last call that watched."""

    def __call__(
        self,
        student: Signals,
        teacher: Signals | None,
        batch: Batch,
        shares: Tensor,
        step: int,
        watch: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """One micro-batch's share of the loss.

        Args:
            shares: [len(COUNT_KINDS)] what one unit of each count weighs in the loss.
            step: counted from 1; weights and temperatures may change with it.
            watch: fill `watched`.

        Returns:
            the loss [], and every objective's plain sum [num objectives], detached.
        """
        loss = shares.new_zeros(())
        sums: dict[int, Tensor] = {}
        for name, heads in self.heads.items():
            scales = torch.stack([self._scale(number, shares, step) for number, _ in heads])
            total, each = ask_heads([one for _, one in heads], scales, student.of(name), teacher, batch, step)
            loss = loss + total
            sums |= {number: value for (number, _), value in zip(heads, each.unbind(), strict=True)}
        for number, part in enumerate(self.parts):
            if number in sums:
                continue
            term = part.loss(student.of(part.head), teacher, batch)
            self.count_of[part.label] = term.count
            loss = loss + self._scale(number, shares, step) * term.sum
            sums[number] = term.sum.detach().float()
            if watch:
                with torch.no_grad():
                    self.watched |= {f"{part.label}/{name}": tell() for name, tell in term.watch.items()}
        return loss, torch.stack([sums[number].float() for number in range(len(self.parts))])

    def apart(
        self, student: Signals, teacher: Signals | None, batch: Batch, shares: Tensor, step: int
    ) -> Iterator[Tensor]:
        """Each objective's own share of the loss [], in order: what `__call__` adds up, at the cost of one pass over
        the heads for each head loss."""
        for number, part in enumerate(self.parts):
            scale = self._scale(number, shares, step)
            if isinstance(part.loss, HeadLoss):
                yield ask_heads([part.loss], scale.unsqueeze(0), student.of(part.head), teacher, batch, step)[0]
            else:
                yield scale * part.loss(student.of(part.head), teacher, batch).sum

    def _scale(self, number: int, shares: Tensor, step: int) -> Tensor:
        """[] what one unit of an objective's sum weighs in the loss."""
        part = self.parts[number]
        return part.weight(step) * shares[COUNT_KINDS.index(self.count_of[part.label])]


def ask_heads(
    losses: Sequence[HeadLoss],
    scales: Tensor,
    student: Signals,
    teacher: Signals | None,
    batch: Batch,
    step: int,
) -> tuple[Tensor, Tensor]:
    """All head losses in one pass.

    Args:
        scales: [num losses] what one unit of each sum weighs in the total.
        step: counted from 1.

    Returns:
        total: [] sum over losses of scale * sum, differentiable.
        sums: [num losses] plain sums in nats, detached.
    """
    # nobody looks at the whole batch when all that is asked for are its labelled positions
    scopes = {loss.scope for loss in losses}
    rows = batch.attended if "tokens" in scopes else batch.asked if "asked" in scopes else batch.targets
    labels = batch.labels.flatten()[rows]
    selects = {"tokens": torch.ones_like(labels, dtype=torch.bool), "targets": labels != IGNORE}
    selects["asked"] = selects["targets"] if batch.asked is batch.targets else torch.isin(rows, batch.asked)
    selected = torch.stack([selects[loss.scope] for loss in losses])
    coefficients = selected * scales.unsqueeze(1)
    terms = [loss.term_at(step) for loss in losses]
    hard = any(isinstance(term, Hard) for term in terms)

    def ask(ours: Projection, **theirs: Any) -> tuple[Tensor, Tensor]:
        total, each = head_losses(ours, terms, coefficients, labels if hard else None, **theirs)
        return total, torch.where(selected, each, 0).sum(1)

    if not any(isinstance(term, Soft) for term in terms):
        return student.head(lambda *head: ask(Projection(*head)), rows)
    assert teacher is not None
    if teacher.kept is not None:
        kept = teacher.kept(rows)
        assert all(term.temperature == kept.temperature for term in terms if isinstance(term, Soft))
        top_k = TopK(kept.ids, kept.log_probs, kept.ghost)
        return student.head(lambda *head: ask(Projection(*head), top_k=top_k), rows)
    if teacher.members:
        weights, answers = zip(*teacher.members, strict=True)
        mixed = {"mixing": weights, "mean": "arithmetic"}
        return in_heads([student, *answers], rows, lambda ours, *theirs: ask(ours, teachers=theirs, **mixed))
    return in_heads([student, teacher], rows, lambda ours, theirs: ask(ours, teachers=[theirs]))


def in_heads(answers: Sequence[Signals], rows: Tensor, fn: Callable[..., Any], *heads: Projection) -> Any:
    """`fn` of the heads of all models at `rows`: each runs inside the one before, so that all weights are readable at
    once, also where they are in pieces at other times (ZeRO 3)."""
    if not answers:
        return fn(*heads)
    first, *rest = answers
    return first.head(lambda *head: in_heads(rest, rows, fn, *heads, Projection(*head)), rows)
