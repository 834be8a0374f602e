"""Whether a teacher may teach: what it must prove before the first step, for a wrong one teaches without complaint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megadistill.core.errors import UserError
from megadistill.core.schema import Strict
from megadistill.core.types import Batch, Kept, Needs, Signals
from megadistill.kernels.chunks import chunks, fp32_logits
from megadistill.kernels.head_losses import linear_ce
from megadistill.models.signals import LanguageModel

PADDING_MASS = 0.01
"""More probability than this on ids that no text has, and the padding takes part in the distribution. Sound ones
that were trained for 60 to 200 steps only give 3 of 64 such ids 0.0008 at most."""

FILLED_MASS = 0.001
"""The same where the padding was filled with zeros, and so never trained."""


class Guard(Strict):
    """What a teacher must prove on the first rows of the data: that it is frozen, repeatable, finite, whole, the model
    that is meant, and that it predicts this text, as it is tokenized here, better than word frequencies do.

    Neighbouring layers that have changed places may cost it as little as 1 % of its loss: of such a fault only its hash
    tells, or a bound that near."""

    max_loss: float | Literal["unigram"] | None = "unigram"
    """Largest loss in nats per target; unigram: that of the training text's token frequencies; None: any."""
    sha256: str | None = None
    """Of its weights (a run's journal states it); None: whatever is loaded."""


def guard(
    config: Guard,
    source: Any,
    student: LanguageModel | None,
    batch: Batch,
    vocabulary: int,
    counts: NDArray[np.int64] | None,
) -> None:
    """Let a built teacher prove itself.

    Args:
        source: the teacher, attached and on its device.
        student: at step 0; it must not be the teacher. None: there is none yet.
        batch: some rows of the data with targets, on the teacher's device.
        vocabulary: how many ids the tokenizer has.
        counts: [vocabulary] how often each occurs in the training text; None: unknown, no `unigram` bound.

    Raises:
        UserError: names everything that is wrong with it.
    """
    problems: list[str] = []
    for model in source.models:
        problems += _frozen(model)
        problems += _whole(model)
        if student is not None and _same(model, student):
            problems.append("it is the student: every parameter is equal")
    problems += _answers(config, source, batch, vocabulary, counts)
    if config.sha256 is not None:
        found = source.identity().get("sha256")
        if found != config.sha256:
            problems.append(f"its weights have sha256 {found}, teacher.guard.sha256 says {config.sha256}")
    if problems:
        raise UserError(
            "the teacher must not teach: " + problems[0],
            "\n  ".join(problems[1:]),
            "give the right folder and tokenizer (data.tokenizer must be the teacher's); if it is meant to be so, set "
            "teacher.guard: {max_loss: null}",
        )


def _frozen(model: LanguageModel) -> Iterator[str]:
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        yield f"{training[0]} is in training mode, where dropout is on"
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if learning:
        yield f"{len(learning)} parameter(s) would get gradients, such as {learning[0]}"


def _whole(model: LanguageModel) -> Iterator[str]:
    for name, parameter in model.named_parameters():
        if not bool(parameter.isfinite().all()):
            yield f"{name} has values that are not finite"
        elif parameter.dim() >= 2 and not bool(parameter.any()):
            yield f"{name} is all zeros: a part that was never filled"


def _same(model: LanguageModel, student: LanguageModel) -> bool:
    theirs = dict(student.named_parameters())
    ours = dict(model.named_parameters())
    return ours.keys() == theirs.keys() and all(
        theirs[name].shape == value.shape and torch.equal(theirs[name].to(value), value) for name, value in ours.items()
    )


@torch.no_grad()
def _loss(signals: Signals, rows: Tensor, labels: Tensor) -> float:
    return float(signals.head(lambda h, w, b: linear_ce(h, w, b, labels), rows)) / len(rows)


def _answers(
    config: Guard, source: Any, batch: Batch, vocabulary: int, counts: NDArray[np.int64] | None
) -> Iterator[str]:
    needs = Needs(teacher=True, teacher_hidden=frozenset({-1}))
    first, second = (source.signals(batch, needs) for _ in range(2))
    if first.kept is not None:  # its model has proved itself before it answered
        yield from _kept_is_sound(first.kept(batch.attended))
        return
    states, again = first.hidden[-1], second.hidden[-1]
    if states.requires_grad:
        yield "its answer has a graph: gradients would flow into it"
    if not bool(states[batch.mask].isfinite().all()):
        yield f"its hidden states overflow in {str(states.dtype).removeprefix('torch.')}: try teacher.dtype: bfloat16"
        return
    if not torch.equal(states[batch.mask], again[batch.mask]):
        yield "it answers the same rows differently each time: something in it is random, such as dropout"
    mass, filled = _padding_mass(first, batch, vocabulary)
    if mass > (FILLED_MASS if filled else PADDING_MASS):
        yield (
            f"{mass:.2%} of its probability lies on ids past the tokenizer's {vocabulary:,}: a padded vocabulary, of "
            "which its output layer must be rid"
        )
    rows = batch.targets
    labels = batch.labels.flatten()[rows]
    if not len(rows):
        return
    loss = _loss(first, rows, labels)
    bound, what = _bound(config, labels, vocabulary, counts)
    if not loss <= bound:
        learnt = "tokenizer" if batch.pixels is None else "images, or order of classes,"
        yield (
            f"its loss on this data is {loss:.2f} nats per target, {what}: "
            f"not these weights, or not the {learnt} it was trained with"
        )


def _kept_is_sound(kept: Kept) -> Iterator[str]:
    mass = kept.log_probs.exp().sum(-1)
    if not bool((mass < 1.01).all()) or bool((mass <= 0).any()):
        yield f"its kept probabilities sum to between {float(mass.min()):.3g} and {float(mass.max()):.3g}"


def _bound(config: Guard, labels: Tensor, vocabulary: int, counts: NDArray[np.int64] | None) -> tuple[float, str]:
    if config.max_loss is None or (config.max_loss == "unigram" and counts is None):
        return math.inf, ""
    if config.max_loss == "unigram":
        assert counts is not None
        frequencies = (torch.from_numpy(counts).double() + 1) / float(counts.sum() + vocabulary)
        bound = float(-frequencies.log()[labels.cpu()].mean())
        return bound, f"worse than the {bound:.2f} of guessing by word frequency"
    return float(config.max_loss), f"more than teacher.guard.max_loss, {config.max_loss}"


def _padding_mass(signals: Signals, batch: Batch, vocabulary: int) -> tuple[float, bool]:
    """Mean probability of the ids from `vocabulary` on, at the targets (elsewhere no masked model was ever asked), and
    whether their weights are all zeros."""
    rows = batch.targets

    def mass(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[float, bool]:
        if weight.shape[0] <= vocabulary:
            return 0.0, False
        parts = chunks(len(rows), weight.shape[0], num_buffers=2)
        sums = [fp32_logits(hidden[p], weight, bias).softmax(-1)[:, vocabulary:].sum() for p in parts]
        return float(sum(sums)) / max(len(rows), 1), not bool(weight[vocabulary:].any())

    return signals.head(mass, rows)
