"""How much a student is like its teacher on one batch: the report on its initialisation, before the first step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from megadistill.core.types import Batch, Signals
from megadistill.kernels.chunks import chunks, fp32_logits
from megadistill.models.signals import LanguageModel

MAX_TOKENS, LAYER_TOKENS = 512, 128
"""Over so many attended positions, and so many of them at layers in between; a report, not a measurement."""


@torch.no_grad()
def likeness(student: LanguageModel, teacher: LanguageModel, batch: Batch) -> dict[str, Any]:
    """Both models' answers to `batch`, compared at up to MAX_TOKENS attended positions.

    Returns:
        kl: KL(teacher || student) at temperature 1, mean, in nats; agreement_top1: share of positions where both rank
        the same token first; and by student layer, each beside the teacher layer at the same relative depth:
        agreement: that share, had both models ended there (of the last layer only, where the heads of others cannot be
        asked); cosine: mean cosine of the states, 0 being the embedding
        output, empty where widths differ.
    """
    modes = student.training, teacher.training
    student.eval(), teacher.eval()
    ours, theirs = student.dims, teacher.dims
    pairs = {layer: round(layer * theirs.layers / ours.layers) for layer in range(ours.layers + 1)}
    mine = student.signals(batch, frozenset(pairs))
    goal = teacher.signals(batch, frozenset(pairs.values()))
    student.train(modes[0]), teacher.train(modes[1])
    rows = batch.attended[:MAX_TOKENS]
    kl, agreed = _compare(mine, goal, rows)
    some, agreement = rows[:LAYER_TOKENS], {}
    for layer in range(1, ours.layers) if ours.inner_head and theirs.inner_head else ():
        other = pairs[layer] if pairs[layer] < theirs.layers else -1
        agreement[layer] = _compare(mine, goal, some, layer, other)[1] / len(some)
    cosine = {}
    for layer, other in pairs.items() if ours.hidden == theirs.hidden else ():
        a, b = (s.flatten(0, 1)[rows].float() for s in (mine.hidden[layer], goal.hidden[other]))
        cosine[layer] = float(torch.nn.functional.cosine_similarity(a, b, dim=-1).mean())
    return {
        "kl": kl / len(rows),
        "agreement_top1": agreed / len(rows),
        "agreement": {**agreement, ours.layers: agreed / len(rows)},
        "cosine": cosine,
    }


def _compare(mine: Signals, goal: Signals, rows: Tensor, layer: int = -1, other: int = -1) -> tuple[float, float]:
    """KL and agreements of the two heads on these layers, summed."""

    def compare(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[float, float]:
        size = weight.shape[0]

        def against(h: Tensor, w: Tensor, b: Tensor | None) -> tuple[float, float]:
            kl = agreed = 0.0
            for part in chunks(len(rows), size, num_buffers=4):
                log_q = fp32_logits(hidden[part], weight, bias).log_softmax(-1)
                log_p = fp32_logits(h[part], w[:size], None if b is None else b[:size]).log_softmax(-1)
                kl += float((log_p.exp() * (log_p - log_q)).sum())
                agreed += float((log_p.argmax(-1) == log_q.argmax(-1)).sum())
            return kl, agreed

        return goal.head(against, rows, (other,))

    return mine.head(compare, rows, (layer,))
