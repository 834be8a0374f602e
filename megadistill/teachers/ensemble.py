"""Several teachers that answer as one, by the mean of their distributions (Hinton, Vinyals & Dean 2015, section 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from megadistill.core.errors import UserError
from megadistill.core.files import sha256_json
from megadistill.core.types import Batch, Dims, HeadFunction, Needs, Signals
from megadistill.data.config import DataConfig
from megadistill.models.signals import LanguageModel
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
    routes: dict[str, list[float]] | None = None
    """Such weights for the rows of each corpus, by its name, as in {wikipedia: [1, 0], books: [0, 1]} where two members
    know a corpus each (every member still reads every row, and a text of no corpus, which `evaluate` may score, counts
    as the first one's); or for each task that a run may be of ({sst2: [1, 0], ...};
    members that weigh nothing there are not even loaded). Instead of `weights`."""
    mean: Literal["geometric", "arithmetic"] = "geometric"
    """geometric: softmax(sum_k w_k z_k / T) at every temperature T, the mean of logits, so that every objective sees
    one teacher. arithmetic: sum_k w_k softmax(z_k / T), for objectives on distributions at one temperature; the guard
    and held-out scores still look at the mean of logits."""

    @model_validator(mode="after")
    def _weights_weigh(self) -> EnsembleTeacher:
        for name, given in [("weights", self.weights), *((f"routes.{n}", r) for n, r in (self.routes or {}).items())]:
            if given is not None and (len(given) != len(self.members) or min(given) < 0 or sum(given) <= 0):
                raise ValueError(
                    f"{name}: {given} for {len(self.members)} members; give one each, at least 0, not all 0"
                )
        if any(member.placement != "replicated" for member in self.members):
            raise ValueError("members: an ensemble joins their heads once, so each must be placement: replicated")
        if self.routes is not None and (self.weights is not None or self.mean == "arithmetic"):
            raise ValueError("routes: they stand instead of `weights`, and with mean: geometric")
        return self

    def fetch(self) -> None:
        for member in self.members:
            member.fetch()

    def paths(self) -> list[str]:
        return [path for member in self.members for path in member.paths()]

    def cannot(self, needs: Needs) -> str:
        if needs.again:
            return "its members have different states, none of which could be exchanged; use teacher: online"
        if why := self.members[0].cannot(needs):  # whose states and attention are the ensemble's
            return why
        if self.mean == "arithmetic" and needs.logits:
            return "no logits have the arithmetic mean of distributions; set teacher.mean: geometric"
        if self.mean == "arithmetic" and len(needs.temperatures) > 1:
            told = ", ".join(f"{t:g}" for t in sorted(needs.temperatures))
            return f"its arithmetic mean is taken at one temperature, not at {told}; set teacher.mean: geometric"
        return ""

    def cannot_read(self, data: DataConfig) -> str:
        return next(filter(None, (member.cannot_read(data) for member in self.members)), "")

    def stands_for(self, rows: Sequence[str]) -> OnlineTeacher | EnsembleTeacher:
        if self.routes is None:
            return self
        absent = [name for name in rows if name not in self.routes]
        if absent:
            raise UserError(
                f"teacher.routes: none for {', '.join(absent)}",
                f"there are some for {', '.join(self.routes)}",
                f"give every one of {', '.join(rows)} its members' weights",
            )
        if len(rows) > 1:
            return self.model_copy(update={"routes": {name: self.routes[name] for name in rows}})
        weigh = [(member, weight) for member, weight in zip(self.members, self.routes[rows[0]], strict=True) if weight]
        if len(weigh) == 1:
            return weigh[0][0].model_copy(update={"guard": self.guard})
        members, weights = ([one[part] for one in weigh] for part in (0, 1))
        return self.model_copy(update={"members": members, "weights": weights, "routes": None})

    def stored(self) -> LanguageModel:
        return self.members[0].stored()

    def build(self, device: torch.device) -> EnsembleSource:
        return self._joined([member.build(device) for member in self.members])

    def empty(self, device: torch.device) -> EnsembleSource:
        return self._joined([member.empty(device) for member in self.members])

    def _joined(self, members: Sequence[OnlineSource]) -> EnsembleSource:
        weights = _shares(self.weights or [1.0] * len(self.members))
        routes = None if self.routes is None else [_shares(route) for route in self.routes.values()]
        return EnsembleSource(members, weights, self.mean, routes)


class EnsembleSource:
    """The built teacher."""

    def __init__(
        self,
        members: Sequence[OnlineSource],
        weights: Sequence[float],
        mean: str = "geometric",
        routes: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Args:
            members: at least one.
            weights: one per member, summing to 1.
            mean: geometric or arithmetic.
            routes: such weights for each corpus; geometric only.

        Raises:
            UserError: vocabularies that cannot belong to one tokenizer.
        """
        self.members, self.weights, self.mean = list(members), list(weights), mean
        self.routes = None if routes is None else [list(route) for route in routes]
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
        self._routes: Tensor | None = None

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
            shares = self._weights(batch, rows)
            columns = [share * h for share, (h, _, _) in zip(shares, parts, strict=True)]
            if self.routes is not None:  # and those of the biases, which are columns of the joined head then
                columns += [share for share, (_, _, b) in zip(shares, parts, strict=True) if b is not None]
            return fn(torch.cat(columns, dim=-1), *self._head)

        apart = tuple(zip(self.weights, answers, strict=True)) if self.mean == "arithmetic" else ()
        return Signals(head, answers[0].hidden, answers[0].attention, members=apart)

    def _weights(self, batch: Batch, rows: Tensor) -> Sequence[Any]:
        """Of each member: one number, or [N, 1] for the flat positions `rows`."""
        if self.routes is None:
            return self.weights
        if self._routes is None:
            dtype = next(self.models[0].parameters()).dtype
            self._routes = torch.tensor(self.routes, dtype=dtype, device=rows.device)
        shares: Sequence[Tensor] = self._routes[batch.corpora[rows // batch.ids.shape[1]]].split(1, dim=1)
        return shares

    def _joined(self, heads: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
        size = self.vocabulary
        columns = [weight[:size] for weight, _ in heads]
        if self.routes is not None:
            return torch.cat([*columns, *(b[:size].unsqueeze(1) for _, b in heads if b is not None)], dim=-1), None
        biases = [w * b[:size] for w, (_, b) in zip(self.weights, heads, strict=True) if b is not None]
        return torch.cat(columns, dim=-1), torch.stack(biases).sum(0) if biases else None

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
        said = {"weights": self.weights, "mean": self.mean, "routes": self.routes}
        digest = sha256_json([said, [member["sha256"] for member in members]])
        return {"kind": "ensemble", "members": members, **said, "sha256": digest}


def _shares(weights: Sequence[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]
