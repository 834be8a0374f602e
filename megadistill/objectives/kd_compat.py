"""Soft targets with the divisors of other projects' code, so that a published alpha means here what it meant there."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from megadistill.core.types import AnswerKind, Batch, Dims, Needs, Signals, Term
from megadistill.kernels.chunks import chunks, fp32_logits
from megadistill.kernels.head_losses import Soft
from megadistill.objectives.base import Objective
from megadistill.objectives.mixture import HeadLoss, Scope


class _Form(NamedTuple):
    """What a project's code makes of KL(teacher || student) at temperature T, summed over the vocabulary; the mean is
    over positions."""

    t_squared: bool
    """Times T^2."""
    per_class: bool = False
    """Divided by the vocabulary too."""
    padding: bool = False
    """The mean is over padding as well."""
    entropy: bool = False
    """Cross-entropy: the teacher's entropy is in the value (the gradient is the same)."""
    per_row: bool = False
    """The mean is over rows: a row of twice the length weighs twice."""


ORIGINALS: dict[str, _Form] = {
    "hf_distil": _Form(t_squared=True),
    "distillkit": _Form(t_squared=True),
    "modelopt_hf": _Form(t_squared=True, padding=True),
    "modelopt_core": _Form(t_squared=True, padding=True, per_row=True),
    "maxtext": _Form(t_squared=True, padding=True),
    "torchdistill_alpha": _Form(t_squared=True, padding=True),
    "pkd_mean": _Form(t_squared=True, per_class=True, padding=True),
    "deit_numel": _Form(t_squared=True, per_class=True, padding=True),
    "neural_compressor_kl": _Form(t_squared=True, per_class=True, padding=True),
    "neural_compressor_ce": _Form(t_squared=True, padding=True, entropy=True),
    "liger_kl": _Form(t_squared=False),
    "torchdistill_batchmean": _Form(t_squared=False, padding=True),
    "distily": _Form(t_squared=False, padding=True),
    "textbrewer": _Form(t_squared=False, entropy=True),
    "torchtune": _Form(t_squared=False, entropy=True),
    "miniplm": _Form(t_squared=False, entropy=True),
    "tinybert_mean": _Form(t_squared=False, per_class=True, padding=True, entropy=True),
}


class KDCompat(Objective):
    """The soft-target loss of `original`'s code, to be compared with or to carry its weights over; for anything new,
    `soft_ce` says what it computes.

    On one batch the value equals the original's. Over several ranks or micro-batches the originals average means, so
    their gradient depends on the split; here the sum over the global batch is divided once.
    """

    kind: Literal["kd_compat"]
    suits: ClassVar[frozenset[AnswerKind]] = frozenset({"tokens", "label", "choice", "image"})
    original: Literal[
        "hf_distil",
        "distillkit",
        "modelopt_hf",
        "modelopt_core",
        "maxtext",
        "torchdistill_alpha",
        "pkd_mean",
        "deit_numel",
        "neural_compressor_kl",
        "neural_compressor_ce",
        "liger_kl",
        "torchdistill_batchmean",
        "distily",
        "textbrewer",
        "torchtune",
        "miniplm",
        "tinybert_mean",
    ]
    """Whose code. They differ in T^2, in dividing by the vocabulary, in counting padding, in the teacher's entropy."""
    temperature: float = Field(1.0, gt=0)
    """T, divides both models' logits."""
    scope: Literal["tokens", "targets"] = "tokens"
    """What the code is given. `tokens`: whole rows, of which it counts padding or not; `targets`: positions with a
    label only, or, of a task, with a question, labelled or not, and then its mean is over them."""

    def needs(self) -> Needs:
        form = ORIGINALS[self.original]
        return Needs(
            teacher=True,
            logits=form.entropy,
            whole=form.entropy,
            temperatures=frozenset({self.temperature}),
            padding=form.padding and self.scope == "tokens",
        )

    def remark(self) -> str:
        return (
            f"equals {self.original}'s code on one batch; over micro-batches and ranks that code averages means, here "
            "the sum over the global batch is divided once, so that the gradient does not depend on the split"
        )

    def build(self, student: Dims, teacher: Dims | None) -> _KDCompatLoss:
        return _KDCompatLoss(ORIGINALS[self.original], self, student.vocabulary)


class _KDCompatLoss:
    def __init__(self, form: _Form, config: KDCompat, vocabulary: int) -> None:
        self.form, self.temperature = form, config.temperature
        self.scope: Scope = "tokens" if config.scope == "tokens" else "asked"
        self.kl = HeadLoss(Soft(self.temperature), self.scope)  # T^2 is in it
        self.factor = 1.0 if form.t_squared else 1 / self.temperature**2
        self.classes = vocabulary if form.per_class else 1

    def __call__(self, student: Signals, teacher: Signals | None, batch: Batch) -> Term:
        assert teacher is not None
        whole = self.form.padding and self.scope == "tokens"
        if whole:
            batch = replace(batch, mask=torch.ones_like(batch.mask))
        total = self.kl(student, teacher, batch).sum
        if self.form.entropy:
            rows = batch.attended if self.scope == "tokens" else batch.asked
            total = total + self.temperature**2 * self._entropy(student, teacher, rows)
        total = self.factor * total / self.classes
        if not whole:
            return Term(total, self.scope)
        return Term(total if self.form.per_row else total / batch.mask.shape[1], "sequences")

    def _entropy(self, student: Signals, teacher: Signals, rows: Tensor) -> Tensor:
        """[] of the teacher's softened distributions over the student's vocabulary, summed over `rows`."""

        def entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            size = weight.shape[0]
            return teacher.head(lambda h, w, b: self._sum(h, w[:size], None if b is None else b[:size]), rows)

        with torch.no_grad():
            return student.head(entropy, rows)

    def _sum(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        for part in chunks(len(hidden), weight.shape[0], num_buffers=2):
            log_p = (fp32_logits(hidden[part], weight, bias) / self.temperature).log_softmax(-1)
            total -= (log_p.exp() * log_p).sum()
        return total
