"""Learn together with a second model that learns from the student (deep mutual learning, Zhang et al. 2018)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

import megadistill.models.students
from megadistill.core import seeds
from megadistill.core.errors import UserError
from megadistill.core.schema import OneOf, discover
from megadistill.core.types import AnswerKind, Batch, Dims, Signals, Term
from megadistill.kernels.head_losses import Hard, Projection, Soft, head_losses
from megadistill.models.signals import LanguageModel
from megadistill.objectives.base import Objective
from megadistill.objectives.mixture import in_heads

discover(megadistill.models.students)  # the union below needs every kind imported first

from megadistill.models.students.base import Student  # noqa: E402


class Mutual(Objective):
    """T^2 KL(member || student) + T^2 KL(student || member) + CE(member, labels), mean over the positions with a label,
    in nats; in each divergence only the second model learns. Zhang et al. (2018), equations 5 to 8, of both networks;
    the student's own cross-entropy is `hard_ce`, beside this with the same weight.

    The member is trained, sharded and saved with the student, and not exported. It costs its forward and backward pass.
    It needs no teacher.
    """

    kind: Literal["mutual"]
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"tokens"})
    member: OneOf[Student]
    """The second model, from scratch or from a folder; its vocabulary is the student's. An architecture that reads ids
    of special tokens (RoBERTa: pad_token_id) must find them in its `config`."""
    temperature: float = Field(1.0, gt=0)
    """T, divides both models' logits."""

    def build(self, student: Dims, teacher: Dims | None) -> _MutualLoss:
        seed = seeds.derive(torch.initial_seed(), self.label)  # the caller has seeded all objectives from the run's
        try:
            member = self.member.build(None, student.vocabulary, student.causal, seed)
        except UserError as error:  # which speaks of the run's student
            what = error.what.removeprefix("student.")
            raise UserError(what if what == error.what else f"member.{what}", error.why, error.fix) from error
        if member.dims.vocabulary != student.vocabulary:
            raise UserError(
                f"member: it has a vocabulary of {member.dims.vocabulary:,} entries, not {student.vocabulary:,}",
                "their distributions are compared entry by entry",
                "leave vocab_size out of its config, or take a folder of the same tokenizer",
            )
        return _MutualLoss(member, self.temperature)


class _MutualLoss(nn.Module):
    def __init__(self, member: LanguageModel, temperature: float) -> None:
        super().__init__()
        self.member, self.temperature = member, temperature

    def forward(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        rows = batch.targets
        labels = batch.labels.flatten()[rows]
        soft = Soft(self.temperature)

        def both(ours: Projection, theirs: Projection) -> Tensor:
            ones = torch.ones(2, len(rows), device=labels.device)
            learns, _ = head_losses(ours, [soft], ones[:1], None, [theirs])
            teaches, _ = head_losses(theirs, [soft, Hard()], ones, labels, [ours])
            return learns + teaches

        other = self.member.signals(batch, frozenset())
        return Term(in_heads([student, other], rows, both), "targets")
