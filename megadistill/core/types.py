"""The values that travel between data, models, objectives and the loop.

Shape letters: B rows in a micro-batch, L positions in a row, R = B * L flat positions, N selected positions,
H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

CountKind = Literal["tokens", "targets", "sequences", "asked"]
"""What a term's sum runs over: attended positions, positions with a label, rows, or positions that a model is asked at,
whether or not anybody has labelled them."""

COUNT_KINDS: tuple[CountKind, ...] = ("tokens", "targets", "sequences", "asked")

AnswerKind = Literal["tokens", "label", "value", "span", "choice", "image"]
"""What a batch asks a model for: tokens at positions, or of each row a class, a number, or a span of its positions, or
which one of several rows is right, or of each image its class."""

Attends = Literal["row", "pair", "document"]
"""What a position is shown of its row: all of it; all of it, and which of two texts each position belongs to; or only
its own document, with positions that restart there."""

HeadName = Literal["class", "distillation"]
"""A vision model with a distillation token answers twice, from that token and from the class token."""

IGNORE = -100
"""The label of a position that is no target."""

Result = TypeVar("Result")
HeadFunction = Callable[[Tensor, Tensor, Tensor | None], Result]
"""`fn(hidden [N, H], weight [V, H], bias [V] or None)`, run inside the vocabulary head's own forward."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch of packed rows. `labels[b, l]` is what position l must predict (MLM: the token under the
    mask; CLM: the next token of the same document), `IGNORE` where it must predict nothing.

    A task's row is one example: its class is the label of position 0, whatever position a model answers from; so what
    compares distributions at labelled positions compares classes. Numbers and spans of positions are no entries of a
    distribution and have fields of their own. Where a task asks which of several texts is right, each of them is a
    row, `choices` rows are one example, and its label stands in the first of them."""

    ids: Tensor
    """[B, L] int64 input token ids (for MLM: after masking)."""
    mask: Tensor
    """[B, L] bool, False on padding."""
    segments: Tensor
    """[B, L] int64 document number inside the row, from 1; 0 on padding."""
    labels: Tensor
    """[B, L] int64."""
    rows: Tensor
    """[B] int64 identity of each row: its place in the shards, counted over all corpora."""
    corpora: Tensor = None  # type: ignore[assignment]  # made below, where the rows are known
    """[B] int64 number of each row's corpus in `data.corpora`; 0 unless given."""
    values: Tensor | None = None
    """[B] float32 the rating of each row, where a task asks for numbers; such a row is labelled 0 at position 0."""
    spans: Tensor | None = None
    """[B, 2] int64 first and last position of each row's answer, where a task asks for a part of the row."""
    pixels: Tensor | None = None
    """[B, 3, S, S] uint8 the image of each row, where a task shows images: such a row is one position, and its id 0."""
    unanswered: Tensor | None = None
    """[B] bool rows that a task asks about and nobody has labelled (augmented ones): only a teacher can answer them, at
    position 0, which has no label. None: there are none."""
    choices: int = field(default=1, kw_only=True)
    """How many rows, one after another, are one example."""
    attended: Tensor = field(init=False)
    """[number of tokens] int64 flat positions where `mask` holds: found here, where the batch is made (on the CPU),
    since on a GPU whoever asks how many there are waits for it."""
    targets: Tensor = field(init=False)
    """[number of targets] int64 flat positions that have a label; all of them attended."""
    asked: Tensor = field(init=False)
    """[number asked] int64 flat positions that models are asked at: `targets`, and the first of `unanswered` rows."""

    def __post_init__(self) -> None:
        if getattr(self, "corpora", None) is None:
            object.__setattr__(self, "corpora", torch.zeros_like(self.rows))
        labelled = self.labels != IGNORE
        assert not (labelled & ~self.mask).any(), "a position with a label must be attended"
        for name, where in (("attended", self.mask), ("targets", labelled)):
            object.__setattr__(self, name, where.flatten().nonzero().squeeze(1))
        asked = self.targets
        if self.unanswered is not None:
            first = self.unanswered.nonzero().squeeze(1) * self.labels.shape[1]
            asked = torch.cat([asked, first]).sort().values
        object.__setattr__(self, "asked", asked)

    def to(self, device: torch.device) -> Batch:
        moved = copy(self)
        for f in fields(self):
            if isinstance(value := getattr(self, f.name), Tensor):
                object.__setattr__(moved, f.name, value.to(device, non_blocking=True))
        if self.asked is self.targets:
            object.__setattr__(moved, "asked", moved.targets)
        object.__setattr__(moved, "_home", self.home)
        return moved

    def pinned(self) -> Batch:
        """A copy that a GPU fetches by itself, while whoever sends it goes on."""
        kept = copy(self)
        for f in fields(self):
            if isinstance(value := getattr(self, f.name), Tensor):
                object.__setattr__(kept, f.name, value.pin_memory())
        if self.asked is self.targets:
            object.__setattr__(kept, "asked", kept.targets)
        return kept

    @property
    def home(self) -> Batch:
        """The same batch where it was made, for who reads its numbers on the CPU without waiting for the device."""
        home: Batch = getattr(self, "_home", self)
        return home

    def split(self, size: int) -> list[Batch]:
        """Batches of `size` rows (or examples of `choices` rows) each, in order; the last may have fewer."""
        given = [(f.name, getattr(self, f.name)) for f in fields(self) if f.init]
        parts = {name: value.split(size * self.choices) for name, value in given if isinstance(value, Tensor)}
        each = zip(*parts.values(), strict=True)
        return [Batch(**dict(zip(parts, one, strict=True)), choices=self.choices) for one in each]

    def counts(self) -> Tensor:
        """[len(COUNT_KINDS)] float64, known from the masks alone, before any forward."""
        counts = [len(self.attended), len(self.targets), len(self.ids), len(self.asked)]
        return torch.tensor(counts, dtype=torch.float64)


@dataclass(frozen=True)
class Term:
    """What an objective returns: a sum over one micro-batch, and what the sum runs over. The loop divides it once,
    by the count of the whole global batch, so the gradient does not depend on how the batch is split."""

    sum: Tensor
    """[] differentiable."""
    count: CountKind
    watch: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    """Name -> what makes [2], a sum and the number it is to be divided by: worth logging, not learnt from. Called only
    where logging is due, before the backward pass, without gradients."""


@dataclass(frozen=True)
class Dims:
    """The sizes of a model that objectives build their parameters from."""

    layers: int
    hidden: int
    vocabulary: int
    """Outputs of its head: entries of the vocabulary, or a task's classes."""
    heads: int = 1
    """Of attention, per layer."""
    full_attention: bool = True
    """Whether all attended positions of a row see one another: not in causal models, sliding windows or attention
    confined to documents."""
    causal: bool = False
    """Whether it predicts the next token from those before."""
    inner_head: bool = True
    """Whether its head can be asked about layers before the last: what lies between is known."""
    queries: int | None = None
    """Values of a position's queries in one layer, all heads together; None: its config does not tell."""
    keys: int | None = None
    """Likewise of its keys, and of its values: fewer than `queries` where a key head serves several of them."""


@dataclass(frozen=True)
class Needs:
    """What an objective reads; the union over all objectives decides what the forward passes capture."""

    student_hidden: frozenset[int] = frozenset()
    """Hidden states by number: 0 is the embedding output, l the output of layer l; negative counts from the last."""
    teacher_hidden: frozenset[int] = frozenset()
    teacher: bool = False
    """Reads anything at all of the teacher."""
    student_attention: frozenset[int] = frozenset()
    """Attention of layers by number, from 1; negative counts from the last."""
    teacher_attention: frozenset[int] = frozenset()
    again: bool = False
    """Runs the models once more with hidden states replaced (`Signals.again`)."""
    logits: bool = False
    """Reads the teacher's logits themselves, through `Signals.head`."""
    whole: bool = False
    """Reads the teacher's probability of every entry, also where it is next to nothing."""
    temperatures: frozenset[float] = frozenset()
    """At which it reads the teacher's distribution."""
    padding: bool = False
    """Asks the teacher at padding too."""

    def __or__(self, other: Needs) -> Needs:
        return Needs(**{f.name: getattr(self, f.name) | getattr(other, f.name) for f in fields(self)})


class Head(Protocol):
    """Runs a function where the vocabulary head's weight can be read (under ZeRO-3 nowhere else)."""

    def __call__(self, fn: HeadFunction[Result], rows: Tensor, layers: Sequence[int] = (-1,)) -> Result:
        """`fn(hidden [N, H], weight [V, H], bias)` for the flat positions `rows` [N] int64 of [B * L].

        With several `layers`, of which hidden states are there, `hidden` is theirs one after another, [N * layers, H].
        """
        ...


@dataclass(frozen=True)
class Attention:
    """What one layer attends with: A query heads, K <= A key and value heads of width D each."""

    query: Tensor
    """[B, A, L, D], after rotary embedding where the model has one; so is `key` [B, K, L, D]."""
    key: Tensor
    value: Tensor
    """[B, K, L, D]"""
    scale: float
    """Multiplies query . key."""
    visible: Tensor
    """[B or 1, 1, L, L] bool, broadcasts: which keys (last axis) each query sees."""


@dataclass(frozen=True)
class Kept:
    """What was kept of distributions over the vocabulary, at N positions."""

    ids: Tensor
    """[N, K] int64, all different within a row where their probability is not 0."""
    log_probs: Tensor
    """[N, K], -inf where a row has fewer."""
    ghost: bool
    """Whether the missing mass is one more outcome (the K likeliest were kept), or belongs to what is there (a sample
    of the distribution was kept)."""
    temperature: float
    """At which the distributions were taken."""


@dataclass(frozen=True)
class Signals:
    """What one model says about one micro-batch."""

    head: Head
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    """The hidden states that `Needs` asked for, by the number it used: [B, L, H]."""
    attention: Mapping[int, Attention] = field(default_factory=dict)
    """Likewise."""
    again: Callable[[Mapping[int, Tensor], Tensor], Signals] | None = None
    """`again(values, where)`: the same batch through the same model once more, with the output of layer l replaced by
    `values[l]` [B, L, H] wherever `where` [B, L]; None where the model cannot. Of the forward pass only what lies above
    the lowest of these layers is run, if that layer's own hidden states are there; those below it are left out of the
    answer, and so is attention."""
    kept: Callable[[Tensor], Kept] | None = None
    """Flat positions [N] -> what was kept of the distributions there, where no head is at hand."""
    members: Sequence[tuple[float, Signals]] = ()
    """(weight, answer) of several models of which the mean distribution teaches; `head` then has their mean logits."""
    heads: Mapping[HeadName, Head] = field(default_factory=dict)
    """Of a model with two; `head` then has their mean logits."""

    def of(self, name: HeadName | None) -> Signals:
        """What the model answers from one of its two heads alone; None: as a whole."""
        return self if name is None else replace(self, head=self.heads[name], heads={})


def union_of_needs(needs: Sequence[Needs]) -> Needs:
    """What all objectives read together."""
    total = Needs()
    for item in needs:
        total = total | item
    return total
