"""Match the teacher's softened distribution over the vocabulary (Hinton, Vinyals & Dean 2015, section 2)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from megadistill.core.types import AnswerKind, Dims, Needs
from megadistill.kernels.head_losses import Soft
from megadistill.objectives.base import Objective, Ramp
from megadistill.objectives.mixture import HeadLoss, Scope


class SoftCE(Objective):
    """T^2 * D(teacher, student), mean over the positions in scope of the whole global batch, in nats."""

    kind: Literal["soft_ce"]
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"tokens", "label", "choice", "image"})
    temperature: float = Field(2.0, gt=0)
    """T, divides both models' logits."""
    temperature_ramp: Ramp | None = None
    """Multiplies T as training goes on, as in {start: 1, end: 0.5, to_step: 10000}; None: 1 throughout."""
    scope: Literal["tokens", "targets"] = "tokens"
    """`tokens`: every attended position, as DistilBERT's code does; `targets`: positions with a label only,
    or, of a task, with a question, labelled or not."""
    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    """D: `forward_kl`, KL(teacher || student), as Hinton's; `reverse_kl`, KL(student || teacher), which does not pay
    for what the student leaves out (Gu et al. 2024); `jsd`, the generalised Jensen-Shannon (Agarwal et al. 2024)."""
    beta: float = Field(0.5, gt=0, lt=1)
    """The teacher's weight in `jsd`'s mixture; near 0: beta times forward_kl, near 1: (1 - beta) times reverse_kl."""

    @model_validator(mode="after")
    def _temperature_stays_positive(self) -> SoftCE:
        ramp = self.temperature_ramp
        if ramp is not None and min(ramp.start, ramp.end) <= 0:
            raise ValueError("temperature_ramp: the temperature must stay above 0: give start and end above 0")
        return self

    def needs(self) -> Needs:
        ramp = self.temperature_ramp
        factors = (1.0,) if ramp is None else (ramp.start, ramp.end)
        return Needs(
            teacher=True,
            whole=self.divergence != "forward_kl",
            temperatures=frozenset(self.temperature * factor for factor in factors),
        )

    def build(self, student: Dims, teacher: Dims | None) -> HeadLoss:
        scope: Scope = "tokens" if self.scope == "tokens" else "asked"
        return HeadLoss(Soft(self.temperature, self.divergence, self.beta), scope, self.temperature_ramp)
