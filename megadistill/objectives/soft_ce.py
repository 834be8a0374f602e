"""Match the teacher's softened distribution over the vocabulary (Hinton, Vinyals & Dean 2015, section 2)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from megadistill.core.types import AnswerKind, Dims, Needs
from megadistill.kernels.head_losses import Soft
from megadistill.objectives.base import Objective
from megadistill.objectives.mixture import HeadLoss


class SoftCE(Objective):
    """T^2 * D(teacher, student), mean over the positions in scope of the whole global batch, in nats."""

    kind: Literal["soft_ce"]
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"tokens", "label"})
    temperature: float = Field(2.0, gt=0)
    """T, divides both models' logits."""
    scope: Literal["tokens", "targets"] = "tokens"
    """`tokens`: every attended position, as DistilBERT's code does; `targets`: positions with a label only."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """D: `forward_kl`, KL(teacher || student), as Hinton's; `reverse_kl`, KL(student || teacher), which does not pay
    for what the student leaves out (Gu et al. 2024); `jsd`, the generalised Jensen-Shannon (Agarwal et al. 2024)."""
    beta: float = Field(0.5, gt=0, lt=1)
    """The teacher's weight in `jsd`'s mixture; near 0: beta times forward_kl, near 1: (1 - beta) times reverse_kl."""

    def needs(self) -> Needs:
        return Needs(teacher=True)

    def build(self, student: Dims, teacher: Dims | None) -> HeadLoss:
        return HeadLoss(Soft(self.temperature, self.divergence, self.beta), self.scope)
