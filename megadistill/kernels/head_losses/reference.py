"""What the head losses are, in plain PyTorch with all logits: the definition that faster ones are tested against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megadistill.kernels.head_losses.terms import Hard, HeadTerm, Projection, Soft, TopK


def reference_losses(
    student: Projection,
    terms: Sequence[HeadTerm],
    labels: Tensor | None = None,
    teachers: Sequence[Projection] = (),
    *,
    mixing: Sequence[float] | None = None,
    mean: str = "geometric",
    top_k: TopK | None = None,
) -> Tensor:
    """[num terms, N], every term's loss of every row (see `head_losses`); differentiable, in the student's dtype."""
    logits = torch.nn.functional.linear(*student)
    return torch.stack([_loss(logits, term, labels, teachers, mixing, mean, top_k) for term in terms])


def _loss(
    logits: Tensor,
    term: HeadTerm,
    labels: Tensor | None,
    teachers: Sequence[Projection],
    mixing: Sequence[float] | None,
    mean: str,
    top_k: TopK | None,
) -> Tensor:
    if isinstance(term, Hard):
        assert labels is not None
        return torch.nn.functional.cross_entropy(
            logits, labels.clamp(min=0), reduction="none", label_smoothing=term.smoothing
        )
    log_q = (logits / term.temperature).log_softmax(-1)
    if top_k is not None:
        return term.temperature**2 * _top_k_divergence(log_q, top_k)
    log_p = _teacher(term, teachers, mixing, mean, logits.shape[1]).to(log_q.dtype)
    return term.temperature**2 * _divergence(term, log_p, log_q)


def _teacher(term: Soft, teachers: Sequence[Projection], mixing: Sequence[float] | None, mean: str, v: int) -> Tensor:
    weights = mixing or [1 / len(teachers)] * len(teachers)
    logits = [torch.nn.functional.linear(*teacher)[:, :v] / term.temperature for teacher in teachers]
    short = logits[0].shape[1]
    if short < v:
        logits = [torch.nn.functional.pad(u, (0, v - short), value=-torch.inf) for u in logits]
    if mean == "geometric":
        return torch.stack([w * u for w, u in zip(weights, logits, strict=True)]).sum(0).log_softmax(-1)
    return torch.stack([w * u.softmax(-1) for w, u in zip(weights, logits, strict=True)]).sum(0).log()


def _divergence(term: Soft, log_p: Tensor, log_q: Tensor) -> Tensor:
    p, q = log_p.exp(), log_q.exp()

    def kl(weight: Tensor, ours: Tensor, theirs: Tensor) -> Tensor:
        return torch.where(weight > 0, weight * (ours - theirs), 0.0).sum(-1)

    if term.divergence == "forward_kl":
        return kl(p, log_p, log_q)
    if term.divergence == "reverse_kl":
        return kl(q, log_q, log_p)
    log_m = (term.beta * p + (1 - term.beta) * q).log()
    return term.beta * kl(p, log_p, log_m) + (1 - term.beta) * kl(q, log_q, log_m)


def _top_k_divergence(log_q: Tensor, top_k: TopK) -> Tensor:
    log_p = top_k.log_probs.to(log_q.dtype)
    p, kept = log_p.exp(), log_q.gather(1, top_k.ids)
    loss = torch.where(p > 0, p * (log_p - kept), 0.0).sum(-1)
    if not top_k.ghost:
        return loss
    rest_p = (1 - p.sum(-1)).clamp(min=0)
    rest_q = log_q.exp().scatter(1, top_k.ids, 0.0).sum(-1)
    return loss + torch.where(rest_p > 0, rest_p * (rest_p / rest_q).log(), 0.0)
