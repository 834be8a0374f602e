"""Several teachers that answer as one, by the mean of their distributions (Hinton, Vinyals & Dean 2015, section 1)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from megadistill.core.errors import UserError
from megadistill.core.types import Batch, Dims, HeadFunction, Needs, Signals
from megadistill.teachers.base import Teacher
from megadistill.teachers.online import OnlineSource, OnlineTeacher


class EnsembleTeacher(Teacher):
    """The weighted mean of several models' distributions. It costs the members' forward passes and heads; hidden states
    and attention are the first member's.
    """

    kind: Literal["ensemble"]
    members: list[OnlineTeacher] = Field(min_length=2)
    """Models of one tokenizer; widths, depths and architectures may differ."""
    weights: list[float] | None = None
    """One per member, at least 0, taken relative to their sum; None: all alike."""
    mean: Literal["geometric", "arithmetic"] = "geometric"
    """geometric: softmax(sum_k w_k z_k / T) at every temperature T, the mean of logits, so that every objective sees
    one teacher. arithmetic: sum_k w_k softmax(z_k / T), for objectives on distributions at one temperature; the guard
    and the agreement in held-out scores still look at the mean of logits."""

    @model_validator(mode="after")
    def _weights_weigh(self) -> EnsembleTeacher:
        given = self.weights
        if given is not None and (len(given) != len(self.members) or min(given) < 0 or sum(given) <= 0):
            raise ValueError(f"weights: {given} for {len(self.members)} members; give one each, at least 0, not all 0")
        return self

    def fetch(self) -> None:
        for member in self.members:
            member.fetch()

    def paths(self) -> list[str]:
        return [path for member in self.members for path in member.paths()]

    def cannot(self, needs: Needs) -> str:
        if needs.again:
            return "its members have different states, none of which could be exchanged; use teacher: online"
        if self.mean == "arithmetic" and needs.logits:
            return "no logits have the arithmetic mean of distributions; set teacher.mean: geometric"
        if self.mean == "arithmetic" and len(needs.temperatures) > 1:
            told = ", ".join(f"{t:g}" for t in sorted(needs.temperatures))
            return f"its arithmetic mean is taken at one temperature, not at {told}; set teacher.mean: geometric"
        return ""

    def build(self, device: torch.device) -> EnsembleSource:
        weights = self.weights or [1.0] * len(self.members)
        total = sum(weights)
        members = [member.build(device) for member in self.members]
        return EnsembleSource(members, [w / total for w in weights], self.mean)


class EnsembleSource:
    """The built teacher."""

    def __init__(self, members: Sequence[OnlineSource], weights: Sequence[float], mean: str = "geometric") -> None:
        """Args:
            members: at least one.
            weights: one per member, summing to 1.
            mean: geometric or arithmetic.

        Raises:
            UserError: vocabularies that cannot belong to one tokenizer.
        """
        self.members, self.weights, self.mean = list(members), list(weights), mean
        self.models = tuple(member.model for member in members)
        sizes = [member.dims.vocabulary for member in members]
        if max(sizes) - min(sizes) > 1024:
            raise UserError(
                f"teacher.members: vocabularies of {', '.join(f'{size:,}' for size in sizes)} entries",
                "their logits are averaged entry by entry, and padding explains no such difference",
                "take members of one tokenizer",
            )
        self.vocabulary = min(sizes)
        self._head: tuple[Tensor, Tensor | None] | None = None

    @property
    def dims(self) -> Dims:
        return replace(self.members[0].dims, vocabulary=self.vocabulary)

    @torch.no_grad()
    def signals(self, batch: Batch, needs: Needs) -> Signals:
        nothing = Needs(teacher=True)
        answers = [member.signals(batch, needs if index == 0 else nothing) for index, member in enumerate(self.members)]

        def head(fn: HeadFunction[Any], rows: Tensor, layers: Sequence[int] = (-1,)) -> Any:
            assert tuple(layers) == (-1,), "an ensemble has no layers"
            parts = [answer.head(lambda h, w, b: (h, w, b), rows) for answer in answers]
            if self._head is None:  # the members never change
                self._head = self._joined([(weight, bias) for _, weight, bias in parts])
            # weights go to the states: sum_k w_k h_k W_k' = [w_1 h_1 | w_2 h_2 | ...] [W_1 | W_2 | ...]'
            hidden = torch.cat([w * h for w, (h, _, _) in zip(self.weights, parts, strict=True)], dim=-1)
            return fn(hidden, *self._head)

        def again(values: Any, where: Tensor) -> Signals:
            raise UserError(
                "an ensemble cannot have its states exchanged: its members have different ones",
                "objectives: counterfactual with teacher: ensemble",
                "use teacher: online",
            )

        apart = tuple(zip(self.weights, answers, strict=True)) if self.mean == "arithmetic" else ()
        return Signals(head, answers[0].hidden, answers[0].attention, again, members=apart)

    def _joined(self, heads: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
        size = self.vocabulary
        weight = torch.cat([weight[:size] for weight, _ in heads], dim=-1)
        biases = [w * bias[:size] for w, (_, bias) in zip(self.weights, heads, strict=True) if bias is not None]
        return weight, torch.stack(biases).sum(0) if biases else None

    def attach(self, student: Any) -> None:
        """It has models of its own."""

    def after_step(self, step: int, student: torch.nn.Module) -> None:
        """It never moves."""

    def save(self, folder: Path) -> None:
        """A reference in the manifest is enough."""

    def load(self, folder: Path) -> None:
        """There is nothing to load."""

    def identity(self) -> dict[str, Any]:
        """Every member's, and one sha256 over theirs and the weights."""
        members = [member.identity() for member in self.members]
        digest = hashlib.sha256(repr([self.weights, self.mean, [member["sha256"] for member in members]]).encode())
        said = {"members": members, "weights": self.weights, "mean": self.mean, "sha256": digest.hexdigest()}
        return {"kind": "ensemble", **said}
