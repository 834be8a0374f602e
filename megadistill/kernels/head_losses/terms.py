"""What can be asked of the vocabulary heads: which losses, between which logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import zip_longest
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from megadistill.kernels import dispatch

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]


class Projection(NamedTuple):
    """Logits as the factors they come from: `hidden @ weight.T + bias`, never multiplied out as a whole."""

    hidden: Tensor
    """[N, H]"""
    weight: Tensor
    """[V, H]"""
    bias: Tensor | None = None
    """[V]"""


class TopK(NamedTuple):
    """A teacher of whose distribution only some entries were kept."""

    ids: Tensor
    """[N, K] int64, all different within a row."""
    log_probs: Tensor
    """[N, K] log p of these entries, at the loss's temperature; -inf where a row has fewer."""
    ghost: bool = True
    """What is missing of the mass stands in one more bucket, for the student too. False: it is left out, as for ids
    that were sampled with their weights (unbiased; Anshumann et al. 2025, arXiv:2503.16870)."""


@dataclass(frozen=True)
class Hard:
    """-log softmax(z)[label] in nats; with smoothing, that much of the weight lies evenly on all entries (Szegedy et
    al. 2016, section 7)."""

    smoothing: float = 0.0
    word: str = field(init=False, repr=False)
    """The term in an operator's schema, which carries words; made here, where no compiler traces."""

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing must be in [0, 1), not {self.smoothing}")
        object.__setattr__(self, "word", f"hard:{self.smoothing!r}")


@dataclass(frozen=True)
class Soft:
    """T^2 * D(p, q) in nats, of p = softmax(u / T) of the teacher and q = softmax(z / T) of the student.

    The T^2 keeps the gradient's size when T changes (Hinton, Vinyals & Dean 2015, section 2). D is KL(p || q)
    (`forward_kl`), KL(q || p) (`reverse_kl`; Gu et al. 2024), or beta KL(p || m) + (1 - beta) KL(q || m) with
    m = beta p + (1 - beta) q (`jsd`; Agarwal et al. 2024, equation 1).
    """

    temperature: float = 1.0
    divergence: Divergence = "forward_kl"
    beta: float = 0.5
    word: str = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature must be positive and finite, not {self.temperature}")
        if self.divergence not in get_args(Divergence):
            raise ValueError(f"divergence must be one of {', '.join(get_args(Divergence))}, not {self.divergence!r}")
        if not 0 < self.beta < 1:
            raise ValueError(f"beta must be in (0, 1), not {self.beta}: its ends are forward_kl and reverse_kl, scaled")
        object.__setattr__(self, "word", f"{self.divergence}:{self.temperature!r}:{self.beta!r}")


HeadTerm = Hard | Soft


def encode(terms: Sequence[HeadTerm]) -> str:
    """One word for a list of terms: what an operator's schema can carry."""
    return ",".join([term.word for term in terms])


@lru_cache
def decode(word: str) -> tuple[HeadTerm, ...]:
    """The terms that `encode` made the word of."""
    terms: list[HeadTerm] = []
    for part in word.split(","):
        kind, *numbers = part.split(":")
        if kind == "hard":
            terms.append(Hard(float(numbers[0])))
        else:
            terms.append(Soft(float(numbers[0]), kind, float(numbers[1])))  # type: ignore[arg-type]
    return tuple(terms)


def check(
    student: Projection,
    terms: Sequence[HeadTerm],
    labels: Tensor | None,
    teachers: Sequence[Projection],
    top_k: TopK | None,
    mean: str,
    coefficients: Tensor | None = None,
) -> None:
    """Raises:
    ValueError: naming the argument that does not fit, and what would.
    """
    if not terms:
        raise ValueError("terms is empty: give at least one Hard or Soft")
    _check_projection("student", student)
    rows = student.hidden.shape[0]
    if coefficients is not None:
        if coefficients.shape != (len(terms), rows):
            raise ValueError(f"coefficients must be [{len(terms)}, {rows}], not {[*coefficients.shape]}")
        dispatch.check_device("coefficients", coefficients, "the hidden states", student.hidden)
    soft = [term for term in terms if isinstance(term, Soft)]
    if len(soft) < len(terms):
        if labels is None:
            raise ValueError("labels is None: a Hard term needs [N] int64")
        if labels.dtype != torch.int64 or labels.shape != (rows,):
            raise ValueError(f"labels must be int64 [{rows}], not {labels.dtype} {list(labels.shape)}")
        dispatch.check_device("labels", labels, "the hidden states", student.hidden)
    if soft and bool(teachers) == (top_k is not None):
        raise ValueError("a Soft term needs either teachers or top_k")
    for number, teacher in enumerate(teachers):
        _check_projection(f"teachers[{number}]", teacher)
        if teacher.hidden.shape[0] != rows:
            raise ValueError(f"teachers[{number}].hidden must have {rows} rows, not {teacher.hidden.shape[0]}")
        dispatch.check_device(f"teachers[{number}]", teacher.hidden, "the hidden states", student.hidden)
    if mean not in ("arithmetic", "geometric"):
        raise ValueError(f"mean must be arithmetic or geometric, not {mean!r}")
    if mean == "arithmetic" and len(teachers) > 1 and len({term.temperature for term in soft}) > 1:
        raise ValueError("an arithmetic mean of several teachers needs one temperature for all Soft terms")
    if top_k is not None:
        if top_k.ids.dtype != torch.int64 or top_k.ids.shape[:1] != (rows,) or top_k.ids.ndim != 2:
            raise ValueError(f"top_k.ids must be int64 [{rows}, K], not {top_k.ids.dtype} {list(top_k.ids.shape)}")
        if top_k.log_probs.shape != top_k.ids.shape:
            raise ValueError(f"top_k.log_probs must be {list(top_k.ids.shape)}, not {list(top_k.log_probs.shape)}")
        for name, value in (("ids", top_k.ids), ("log_probs", top_k.log_probs)):
            dispatch.check_device(f"top_k.{name}", value, "the hidden states", student.hidden)
        if any(term.divergence != "forward_kl" for term in soft):
            raise ValueError("top_k knows the kept entries only: divergence must be forward_kl")


def check_labels(labels: Tensor | None, terms: Sequence[HeadTerm], coefficients: Tensor, vocabulary: int) -> None:
    """Where the settings ask for it, which makes the host wait for the device.

    Raises:
        ValueError: the label of a row that a Hard term weighs is none of the vocabulary.
    """
    hard = [coefficients[number] != 0 for number, term in enumerate(terms) if isinstance(term, Hard)]
    if not dispatch.settings().check_labels or labels is None or not hard:
        return
    meant = labels[torch.stack(hard).any(0)]
    if meant.numel() and not (int(meant.min()) >= 0 and int(meant.max()) < vocabulary):
        raise ValueError(f"labels must be in 0 ... {vocabulary - 1}, not {int(meant.min())} ... {int(meant.max())}")


def one_of_each(word: str) -> tuple[int | None, int | None] | None:
    """Where the hard and the forward_kl term stand among the terms of a word, if there is at most one of each and no
    other: what compiled rows can do."""
    hard = [number for number, term in enumerate(decode(word)) if isinstance(term, Hard)]
    soft = [number for number, term in enumerate(decode(word)) if isinstance(term, Soft)]
    others = [term for term in decode(word) if isinstance(term, Soft) and term.divergence != "forward_kl"]
    if others or max(len(hard), len(soft)) > 1:
        return None
    return (hard[0] if hard else None), (soft[0] if soft else None)


@lru_cache
def launches(word: str) -> tuple[tuple[int, int], ...]:
    """Pairs of (number of a Hard term or -1, number of a Soft term or -1): each is served by one pass of a kernel that
    knows one of both."""
    decoded = decode(word)
    hard = [number for number, term in enumerate(decoded) if isinstance(term, Hard)]
    soft = [number for number, term in enumerate(decoded) if isinstance(term, Soft)]
    return tuple(zip_longest(hard, soft, fillvalue=-1))


def _check_projection(name: str, given: Projection) -> None:
    hidden, weight, bias = given
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{name} must be hidden [N, H] and weight [V, H], not {list(hidden.shape)} and {list(weight.shape)}"
        )
    if not weight.shape[0]:
        raise ValueError(f"{name}.weight has no rows: a vocabulary has one entry at least")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name}.bias must be [{weight.shape[0]}], not {list(bias.shape)}")
    if hidden.dtype != weight.dtype or not hidden.is_floating_point():
        raise ValueError(f"{name}: hidden is {hidden.dtype} and weight {weight.dtype}; both must be one float dtype")
    for part, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            dispatch.check_device(f"{name}.{part}", value, "the hidden states", given.hidden)
