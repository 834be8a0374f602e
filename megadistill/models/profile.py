"""Where a language model's distributions are right: by how frequent the target is, and by how sure the model is.

Everything is a sum over targets, so that it adds up over batches and ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megadistill.core.types import Batch, Signals
from megadistill.kernels.chunks import chunks, fp32_logits
from megadistill.models.scoring import joined

GROUPS = 10
"""Tenths of the training tokens, and bins of confidence."""
SUMS = 10
"""Rows of the sums: by tenth the number of targets, the student's nll, the teacher's, and KL; by confidence the number
of targets, confidence and hits, of the student and of the teacher."""


@dataclass(frozen=True)
class TargetScores:
    """What one model says at N targets."""

    nll: Tensor
    """[N] -log p(label), in nats."""
    best: Tensor
    """[N] int64, the entry that it ranks first."""
    confidence: Tensor
    """[N] the probability of that entry."""


def tenths(counts: Tensor) -> Tensor:
    """[V] int64, 0 to 9: in which tenth of the training tokens each entry of the vocabulary lies, 0 the most frequent.

    Tenths of the tokens (their mass), not of the vocabulary's ranks: in natural text nine tokens of ten are of the most
    frequent tenth of the entries, and the other nine averages would rest on next to nothing. Entries are taken in order
    of frequency, equals by number, and belong where the first of their tokens lies; one that fills more than a tenth
    leaves the next tenth empty, and entries that training never saw are in the last.

    Args:
        counts: [V] int64, how often each occurs in the training rows.
    """
    order = torch.argsort(counts, descending=True, stable=True)
    ordered = counts[order]
    before = ordered.cumsum(0) - ordered
    found = torch.empty_like(counts)
    found[order] = (GROUPS * before // ordered.sum().clamp(min=1)).clamp(max=GROUPS - 1)
    return found


@torch.no_grad()
def compare(
    student: Signals, teacher: Signals | None, batch: Batch
) -> tuple[TargetScores, TargetScores | None, Tensor | None]:
    """Both models at a batch's targets, a chunk of targets' logits at a time.

    Returns:
        the student's scores, the teacher's, and KL(teacher || student) [N] at temperature 1, in nats, over the entries
        that both know; None without a teacher.
    """
    labels = batch.labels.flatten()[batch.targets]
    student_scores, teacher_scores, kl = [], [], []

    def work(ours: _Projection, theirs: _Projection | None) -> None:
        vocabulary = max(len(one[1]) for one in (ours, theirs) if one)
        slices = chunks(len(labels), vocabulary, num_buffers=2 if theirs is None else 6)
        for part in list(slices) or [slice(0, 0)]:
            log_q = _log_probs(ours, part)
            student_scores.append(_scores(log_q, labels[part]))
            if theirs is not None:
                log_p = _log_probs(theirs, part)
                teacher_scores.append(_scores(log_p, labels[part]))
                kl.append(_divergence(log_p, log_q))

    if teacher is None:
        student.head(lambda *ours: work(ours, None), batch.targets)
        return joined(student_scores), None, None
    student.head(lambda *ours: teacher.head(lambda *theirs: work(ours, theirs), batch.targets), batch.targets)
    return joined(student_scores), joined(teacher_scores), torch.cat(kl)


def sums(ours: TargetScores, theirs: TargetScores | None, kl: Tensor | None, labels: Tensor, tenth: Tensor) -> Tensor:
    """[SUMS, GROUPS] float64 on the CPU, of N targets.

    Args:
        labels: [N] int64.
        tenth: [V], as `tenths` gives it; on the CPU.
    """
    labels, nothing = labels.cpu(), torch.zeros(len(labels))
    groups = tenth[labels]
    losses = [ours.nll, nothing if theirs is None else theirs.nll, nothing if kl is None else kl]
    rows = [_by(groups, values) for values in (nothing + 1, *losses)]
    for scores in (ours, theirs):
        if scores is None:
            rows += [torch.zeros(GROUPS, dtype=torch.float64)] * 3
            continue
        confidence = scores.confidence.cpu()
        bins = (GROUPS * confidence).ceil().long().clamp(1, GROUPS) - 1  # (0, 0.1], (0.1, 0.2], ...
        rows += [_by(bins, values) for values in (nothing + 1, confidence, scores.best.cpu() == labels)]
    return torch.stack(rows)


def described(total: Tensor, tenth: Tensor, with_teacher: bool) -> dict[str, Any]:
    """What added `sums` say; None where a group has no target.

    Returns:
        calibration_error: the expected calibration error (Guo et al. 2017, equation 3), over ten bins of equal width of
            the probability of the entry ranked first, against how often it was the label;
        calibration: of each bin the number of `targets`, mean `confidence` and `accuracy`;
        by_frequency: of each of the `tenths` the number of `entries` and of `targets`, and the mean `loss`;
        with a teacher also its teacher_calibration_error, teacher_calibration and teacher_loss, and `kl`, the mean
        KL(teacher || student) in nats, overall and by frequency.
    """
    targets, nll, teacher_nll, kl, *bins = total
    by_frequency = {
        "entries": torch.bincount(tenth, minlength=GROUPS).tolist(),
        "targets": _whole(targets),
        "loss": _means(nll, targets),
    }
    result: dict[str, Any] = _calibration("", bins[:3])
    if with_teacher:
        by_frequency |= {"teacher_loss": _means(teacher_nll, targets), "kl": _means(kl, targets)}
        result |= _calibration("teacher_", bins[3:])
        result["kl"] = float(kl.sum() / targets.sum().clamp(min=1))
    return {**result, "by_frequency": by_frequency}


# ------------------------------------------------------------------------------------------ details

_Projection = tuple[Tensor, Tensor, Tensor | None]
"""Hidden states [N, H], weight [V, H], bias [V]."""


def _log_probs(model: _Projection, part: slice) -> Tensor:
    hidden, weight, bias = model
    return fp32_logits(hidden[part], weight, bias).log_softmax(-1)


def _scores(log_probs: Tensor, labels: Tensor) -> TargetScores:
    highest, best = log_probs.max(-1)
    return TargetScores(-log_probs.gather(1, labels.unsqueeze(1)).squeeze(1), best, highest.exp())


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """A vocabulary may be padded in one of the models: what only the teacher knows is left out of its distribution."""
    if log_p.shape[1] > log_q.shape[1]:
        log_p = log_p[:, : log_q.shape[1]].log_softmax(-1)
    log_q = log_q[:, : log_p.shape[1]]
    return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def _by(groups: Tensor, values: Tensor) -> Tensor:
    """[GROUPS] float64"""
    return torch.zeros(GROUPS, dtype=torch.float64).index_add_(0, groups, values.cpu().double())


def _calibration(prefix: str, bins: list[Tensor]) -> dict[str, Any]:
    targets, confidence, hits = bins
    error = float((confidence - hits).abs().sum() / targets.sum().clamp(min=1))
    shown = {"targets": _whole(targets), "confidence": _means(confidence, targets), "accuracy": _means(hits, targets)}
    return {f"{prefix}calibration_error": error, f"{prefix}calibration": shown}


def _whole(values: Tensor) -> list[int]:
    return [int(value) for value in values]


def _means(total: Tensor, targets: Tensor) -> list[float | None]:
    return [round(float(s / n), 6) if n else None for s, n in zip(total, targets, strict=True)]
