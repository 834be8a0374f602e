"""Answer as the teacher does when part of its computation is exchanged (causal distillation: DIITO, Wu et al. 2022)."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from megadistill.core.errors import UserError
from megadistill.core.types import AnswerKind, Batch, Dims, Needs, Signals, Term
from megadistill.kernels.chunks import top_entries
from megadistill.kernels.head_losses import Soft
from megadistill.kernels.hidden_losses import hidden_losses
from megadistill.objectives.base import Objective
from megadistill.objectives.layer_maps import layer_map
from megadistill.objectives.mixture import HeadLoss

LAST = -1


class Counterfactual(Objective):
    """T^2 KL(counterfactual teacher || counterfactual student), mean over attended positions, in nats.

    An interchange intervention (Geiger et al. 2021): in a span of each row, the states of chosen layers are replaced
    by those of another row of the micro-batch at the same positions, in student and teacher alike; both must then
    answer alike. DIITO (Wu et al. 2022), section 3. As the sources are the micro-batch itself with its rows moved on
    by one, their states are there already, and what is run again of each model are the layers above the exchange and
    the head. The price: which rows meet depends on how a batch is split, so that, alone of all objectives, its gradient
    is not split-invariant.

    Logs `interchange_accuracy`: the share of labelled positions where both then rank the same token first (Geiger et
    al. 2021, section 3).
    """

    kind: Literal["counterfactual"]
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"tokens"})
    layers: Literal["middle"] | dict[int, int] = "middle"
    """{student layer: teacher layer} whose states are exchanged together; middle: M / 2 with N / 2, DIITO's best."""
    proportion: float = Field(0.3, gt=0, le=1)
    """Of each row's attended positions, one span of them."""
    temperature: float = Field(2.0, gt=0)
    """T, divides both models' logits."""
    cosine: float = Field(0.0, ge=0)
    """Weight of 1 - cos of the counterfactual last hidden states, added to the KL."""

    def needs(self) -> Needs:
        return Needs(teacher=True, again=True)

    def remark(self) -> str:
        return "rows exchange states within their micro-batch, so the gradient depends on how a batch is split"

    def build(self, student: Dims, teacher: Dims | None) -> _CounterfactualLoss:
        assert teacher is not None
        pairs = {student.layers // 2: teacher.layers // 2} if self.layers == "middle" else self.layers
        pairs = layer_map(pairs, student, teacher)
        if min(pairs) < 1 or max(pairs) >= student.layers or max(pairs.values()) >= teacher.layers:
            raise UserError(
                f"layers: {pairs} of {student.layers} student and {teacher.layers} teacher layers",
                "between the embeddings and the last layer something must still be computed with what was exchanged",
                "name layers from 1 to the last but one",
            )
        if self.cosine and student.hidden != teacher.hidden:
            raise UserError(
                f"cosine: the teacher has {teacher.hidden}, the student {student.hidden} values a state",
                "a cosine is between states of one width",
                "give the student the teacher's width, or set cosine: 0",
            )
        return _CounterfactualLoss(self, pairs)


class _CounterfactualLoss:
    def __init__(self, config: Counterfactual, pairs: dict[int, int]) -> None:
        self.config, self.pairs = config, pairs
        self.kl = HeadLoss(Soft(config.temperature), "tokens")
        last = frozenset({LAST}) if config.cosine else frozenset()
        self.needs = Needs(frozenset(pairs) | last, frozenset(pairs.values()) | last, teacher=True, again=True)

    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        assert teacher is not None
        ours, goal = self.exchanged(student, teacher, batch)
        total = self.kl(ours, goal, batch).sum
        if self.config.cosine:
            states = [ours.hidden[LAST]], [goal.hidden[LAST]]
            total = total + hidden_losses("cosine", *states, [self.config.cosine], batch.mask)
        return Term(total, "tokens", {"interchange_accuracy": lambda: agreement(ours, goal, batch.targets)})

    def exchanged(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Signals, Signals]:
        """Both models' answers after the same exchange."""
        if student.again is None or teacher.again is None:
            raise UserError(
                "the counterfactual objective runs both models again with exchanged states",
                "this teacher has no one model in the process",
                "use teacher: online, or leave the objective out",
            )
        where = spans(batch.mask, self.config.proportion)
        mine = {layer: student.hidden[layer].roll(1, 0) for layer in self.pairs}
        theirs = {layer: teacher.hidden[layer].roll(1, 0) for layer in self.pairs.values()}
        return student.again(mine, where), teacher.again(theirs, where)


def agreement(ours: Signals, goal: Signals, rows: Tensor) -> Tensor:
    """[2]: at how many of the flat positions both rank the same token first, and how many there are."""

    def compare(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        size = weight.shape[0]  # entries past it are the teacher's padding
        theirs = goal.head(lambda h, w, b: top_entries(h, w[:size], None if b is None else b[:size]), rows)
        return (top_entries(hidden, weight, bias) == theirs).sum()

    agreed = ours.head(compare, rows)
    return torch.stack([agreed, torch.full_like(agreed, len(rows))]).float()


def spans(mask: Tensor, proportion: float) -> Tensor:
    """[B, L] bool: in each row one run of `proportion` of the positions that it and the row before it attend to.

    Where it starts comes from torch's global generator, which is reseeded for every micro-batch.
    """
    both = (mask & mask.roll(1, 0)).sum(1, keepdim=True)  # rows are attended from their start
    length = (both * proportion).ceil().long()
    draw = torch.rand(mask.shape[0], 1).to(mask.device, non_blocking=True)
    start = (draw * (both - length + 1)).long()
    index = torch.arange(mask.shape[1], device=mask.device)
    return (index >= start) & (index < start + length)
