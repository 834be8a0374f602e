"""The one module that DeepSpeed wraps: the student and its objectives, from a micro-batch to its share of the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from megadistill.core.types import Batch, Needs, Signals, union_of_needs
from megadistill.models.scoring import score_rows
from megadistill.models.signals import LanguageModel
from megadistill.objectives.base import Loss, Objective, needs_of
from megadistill.objectives.mixture import Mixture, Weighed


class DistillStep(nn.Module):
    """Student forward and all objectives. Their learnable parts are its submodules, so they are sharded, clipped and
    checkpointed with the student; export takes the student alone."""

    def __init__(self, student: LanguageModel, objectives: Sequence[Objective], losses: Sequence[Loss]) -> None:
        super().__init__()
        self.student = student
        self.needs: Needs = union_of_needs([needs_of(o, loss) for o, loss in zip(objectives, losses, strict=True)])
        self.mixture = Mixture(
            [
                Weighed(objective.label, objective.weight_at, loss, objective.head)
                for objective, loss in zip(objectives, losses, strict=True)
            ]
        )
        self.learned = nn.ModuleDict({w.label: w.loss for w in self.mixture.parts if isinstance(w.loss, nn.Module)})

    @property
    def count_of(self) -> dict[str, str]:
        """Objective label -> what its sum runs over; complete after the first forward."""
        return self.mixture.count_of

    @property
    def watched(self) -> dict[str, Tensor]:
        """`label/name` -> [2], a sum and the number it is to be divided by; of the last forward that watched."""
        return self.mixture.watched

    def forward(
        self, batch: Batch, teacher: Signals | None, shares: Tensor | None, step: int = 1, watch: bool = False
    ) -> Any:
        """One micro-batch: its share of the loss, or (`shares` None) its scores.

        Args:
            batch: on this rank's device.
            teacher: its signals, or None when no objective reads a teacher.
            shares: [len(COUNT_KINDS)] what one unit of each count weighs in the loss: 1 / its global count, times
                the ranks and micro-batches that DeepSpeed will divide by. None: score instead.
            step: counted from 1; weights and temperatures may change with it.
            watch: fill `watched` with what terms have to tell beside their sums.

        Returns:
            the loss [] to run backward on, and every objective's plain sum [num objectives], detached;
            or `RowScores`. Both go through here because under ZeRO-3 weights are whole nowhere else.
        """
        if shares is None:
            return score_rows(self.student.signals(batch, frozenset()), teacher, batch)
        return self.mixture(self._signals(batch), teacher, batch, shares, step, watch)

    def gradient_norms(self, batch: Batch, teacher: Signals | None, shares: Tensor, step: int) -> Tensor:
        """[num objectives] the norm of each objective's own gradient with respect to the student, for one micro-batch:
        one backward pass each, outside of what is trained. Weights must be whole (ZeRO 0 to 2).
        """
        learning = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        norms = []
        for loss in self.mixture.apart(self._signals(batch), teacher, batch, shares, step):
            gradients = torch.autograd.grad(loss, learning, retain_graph=True, allow_unused=True)
            norms.append(torch.stack([g.float().norm() for g in gradients if g is not None] or [loss.new_zeros(())]))
        return torch.stack([parts.norm() for parts in norms]).detach()

    def _signals(self, batch: Batch) -> Signals:
        return self.student.signals(batch, self.needs.student_hidden, self.needs.student_attention)
