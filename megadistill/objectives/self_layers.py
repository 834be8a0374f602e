"""Let the student's deeper layers teach its shallower ones (Be Your Own Teacher, Zhang et al. 2019)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from megadistill.core.errors import UserError
from megadistill.core.types import AnswerKind, Batch, Dims, Needs, Signals, Term
from megadistill.kernels.head_losses import Projection, Soft, head_losses
from megadistill.objectives.base import Objective

LAST = -1


class SelfLayers(Objective):
    """T^2 KL(last layer || shallower layer) through the one vocabulary head, mean over attended positions, sum over the
    layers, in nats. No gradient flows into the last layer's answer.

    Zhang et al. (2019), equation 2's middle term, with the model's own head in place of extra classifiers; a causal
    model's last norm is applied to shallower states too. It needs no teacher.
    """

    kind: Literal["self_layers"]
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"tokens"})
    layers: list[int] = Field(min_length=1)
    """Student layers that learn, from 1 to the last but one."""
    temperature: float = Field(1.0, gt=0)
    """T, divides both layers' logits."""

    def needs(self) -> Needs:
        return Needs(student_hidden=frozenset({LAST, *self.layers}))

    def build(self, student: Dims, teacher: Dims | None) -> _SelfLayersLoss:
        if not student.inner_head:
            raise UserError(
                "layers: the student's head cannot be asked about its inner layers",
                "no norm that megadistill knows lies between its last layer and its head",
                "take a student such as BERT, GPT-2, Llama or Pythia, or leave this objective out",
            )
        outside = [layer for layer in self.layers if not 1 <= layer < student.layers]
        if outside:
            raise UserError(
                f"layers: {outside} of a student of {student.layers} layers",
                "the last layer teaches those before it",
                f"name layers from 1 to {student.layers - 1}" if student.layers > 1 else "take a deeper student",
            )
        return _SelfLayersLoss(self)


class _SelfLayersLoss:
    def __init__(self, config: SelfLayers) -> None:
        self.config = config

    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        rows = batch.attended
        layers = self.config.layers

        def compare(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            *shallow, deep = hidden.tensor_split(len(layers) + 1)  # `split` knows no parts of 0 rows
            ours = Projection(torch.cat(shallow), weight, bias)
            goal = Projection(deep.repeat(len(shallow), 1), weight, bias)
            each = torch.ones(1, ours.hidden.shape[0], device=hidden.device)
            return head_losses(ours, [Soft(self.config.temperature)], each, None, [goal])[0]

        return Term(student.head(compare, rows, (*layers, LAST)), "tokens")
