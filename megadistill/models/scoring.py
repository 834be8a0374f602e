"""How well a model answers a batch, row by row, and how often it agrees with its teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from megadistill.core.types import AnswerKind, Batch, Signals
from megadistill.kernels.chunks import chunks, fp32_logits, top_entries


@dataclass(frozen=True)
class RowScores:
    """Sums over the targets of each row; tensors are [B] float64 on the CPU."""

    nll: Tensor
    """-log p(label), in nats, of a span the mean of its start's and its end's; the squared error of a number."""
    targets: Tensor
    """How many targets the row has."""
    agreed: Tensor
    """At how many of them student and teacher rank the same entry, or span, first; 0 without a teacher."""
    correct: Tensor
    """At how many of them the student ranks the label first."""

    def totals(self) -> Tensor:
        """[4] float64, the sums over all rows in the order of the fields; they add up over batches and ranks."""
        return torch.stack([self.nll.sum(), self.targets.sum(), self.agreed.sum(), self.correct.sum()])


def summary(totals: Tensor, with_teacher: bool, asked: AnswerKind = "tokens") -> dict[str, float]:
    """What `RowScores.totals`, added up, say: the same scores during training and after it.

    Returns:
        loss (nats per target, or mean squared error of numbers); of tokens perplexity; but for numbers accuracy, and
        agreement_top1 when there is a teacher.
    """
    nll, targets, agreed, correct = totals.tolist()
    targets = max(targets, 1)
    result = {"loss": nll / targets}
    if asked == "value":
        return result
    if asked == "tokens":
        result["perplexity"] = perplexity(nll / targets)
    result["accuracy"] = correct / targets
    if with_teacher:
        result["agreement_top1"] = agreed / targets
    return result


def perplexity(loss: float) -> float:
    """exp(loss), and inf where a diverged model's would overflow: a score must not end a run."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


Scores = TypeVar("Scores")


def joined(parts: Sequence[Scores]) -> Scores:
    """Dataclasses of tensors [N] as one, in their order."""
    kind: Any = type(parts[0])
    return kind(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(kind)))


@torch.no_grad()
def score_rows(student: Signals, teacher: Signals | None, batch: Batch) -> RowScores:
    """Score one batch; logits exist for a chunk of targets at a time."""
    if batch.spans is not None or batch.values is not None:
        return _score_answers(student, teacher, batch)
    labels, rows = batch.labels.flatten()[batch.targets], batch.targets
    if student.heads:
        log_q = mean_of_heads(student, rows)
        nll, best = -log_q.gather(1, labels.unsqueeze(1)).squeeze(1), log_q.argmax(-1)
    else:
        nll, best = student.head(lambda h, w, b: _nll_and_best(h, w, b, labels), rows)
    return row_scores(batch, nll, best, None if teacher is None else teacher.head(top_entries, rows))


def row_scores(batch: Batch, nll: Tensor, best: Tensor, teachers_best: Tensor | None) -> RowScores:
    """What is known of each target, [N] in the order of `batch.targets`, added up row by row.

    Args:
        best, teachers_best: the entries that student and teacher rank first.
    """
    row_of = batch.targets // batch.labels.shape[1]
    agreed = torch.zeros_like(nll) if teachers_best is None else best == teachers_best

    def per_row(values: Tensor) -> Tensor:
        total = torch.zeros(batch.labels.shape[0], dtype=torch.float64, device=values.device)
        return total.index_add_(0, row_of, values.double()).cpu()

    correct = best == batch.labels.flatten()[batch.targets]
    return RowScores(per_row(nll), per_row(torch.ones_like(nll)), per_row(agreed), per_row(correct))


@torch.no_grad()
def outputs(signals: Signals, batch: Batch) -> Tensor:
    """What a task's model answers to labelled rows, in fp32: [B, classes], [B, 1], of B examples [B, choices], or of
    spans [B, L, 2], -inf where padding is."""
    if signals.heads:
        return mean_of_heads(signals, batch.targets)

    def answer(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return fp32_logits(hidden, weight, bias)

    if batch.spans is None:
        return signals.head(answer, batch.targets).float()
    logits = signals.head(answer, batch.attended).float()
    whole = logits.new_full((batch.mask.numel(), 2), -torch.inf)
    return whole.index_put((batch.attended,), logits).view(*batch.mask.shape, 2)


def mean_of_heads(signals: Signals, rows: Tensor) -> Tensor:
    """[N, V] the logarithm of the mean of both heads' softmax: how a model with a distillation token predicts (Touvron
    et al. 2021, section 4, "classification with our approach: joint classifiers")."""

    def log_probs(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return fp32_logits(hidden, weight, bias).float().log_softmax(-1)

    each = torch.stack([head(log_probs, rows) for head in signals.heads.values()])
    return each.logsumexp(0) - math.log(len(each))


def _score_answers(student: Signals, teacher: Signals | None, batch: Batch) -> RowScores:
    ours = outputs(student, batch)
    nothing = torch.zeros(len(ours), dtype=torch.float64)
    if batch.values is not None:
        error = (ours.squeeze(-1) - batch.values[batch.targets // batch.labels.shape[1]]).square().double().cpu()
        return RowScores(error, nothing + 1, nothing, nothing)
    assert batch.spans is not None
    nll = -ours.log_softmax(1).gather(1, batch.spans.unsqueeze(1)).squeeze(1).mean(1)
    best = ours.argmax(1)
    agreed = nothing
    if teacher is not None:
        agreed = (best == outputs(teacher, batch).argmax(1)).all(1).double().cpu()
    return RowScores(nll.double().cpu(), nothing + 1, agreed, (best == batch.spans).all(1).double().cpu())


def _nll_and_best(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> tuple[Tensor, Tensor]:
    nll, best = torch.zeros(len(labels), device=hidden.device), torch.zeros_like(labels)
    for part in chunks(len(labels), weight.shape[0], num_buffers=2):
        log_q = fp32_logits(hidden[part], weight, bias).log_softmax(-1)
        nll[part] = -log_q.gather(1, labels[part].unsqueeze(1)).squeeze(1).float()
        best[part] = log_q.argmax(-1)
    return nll, best
