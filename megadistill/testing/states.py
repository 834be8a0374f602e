"""Models that are nothing but their tensors: what objectives are tested on, in float64, against plain formulas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from megadistill.core.types import IGNORE, Attention, Batch, Dims, Signals

STUDENT = torch.tensor([[[1.0, 2, 3], [0, 0, 0], [0.5, -1, 2]]], dtype=torch.float64)
TEACHER = torch.tensor([[[3.0, 2, 1], [1, 0, -1], [2, -1, 0.5]]], dtype=torch.float64)
LABELS = torch.tensor([[0, 2, IGNORE]])
MASK = torch.tensor([[True, True, False]])
"""A fixture small enough to compute by hand: [1 row, 3 positions, 3 values], the last position is padding."""


@dataclass
class States:
    """Leaf tensors of one model: hidden states of M + 1 layers, queries, keys and values of M, and a head."""

    hidden: list[Tensor]
    """[B, L, H] each."""
    query: list[Tensor]
    key: list[Tensor]
    value: list[Tensor]
    """[B, A, L, D] each."""
    weight: Tensor
    bias: Tensor
    visible: Tensor
    """[1 or B, 1, L, L] bool."""
    scale: float = 0.7

    @property
    def dims(self) -> Dims:
        full = bool(self.visible.all())
        layers, heads = len(self.query), self.query[0].shape[1]
        return Dims(layers, self.hidden[0].shape[-1], self.weight.shape[0], heads, full)

    def leaves(self) -> list[Tensor]:
        return [*self.hidden, *self.query, *self.key, *self.value, self.weight, self.bias]

    def signals(self) -> Signals:
        """Everything of all layers, also by negative numbers."""

        def head(fn: Any, rows: Tensor, layers: Any = (-1,)) -> Any:
            return fn(torch.cat([hidden[layer].flatten(0, 1)[rows] for layer in layers]), self.weight, self.bias)

        def again(values: Mapping[int, Tensor], where: Tensor) -> Signals:
            """What is exchanged moves the last states by the sine of how far it is from what was there."""
            moves = [(value - hidden[layer]).sin() * where.unsqueeze(-1) for layer, value in values.items()]
            return replace(self, hidden=[*self.hidden[:-1], self.hidden[-1] + torch.stack(moves).sum(0)]).signals()

        attention = [
            Attention(q, k, v, self.scale, self.visible)
            for q, k, v in zip(self.query, self.key, self.value, strict=True)
        ]
        depth = len(attention)
        hidden = dict(enumerate(self.hidden)) | {i - depth - 1: h for i, h in enumerate(self.hidden)}
        numbered = {i + 1: a for i, a in enumerate(attention)} | {i - depth: a for i, a in enumerate(attention)}
        return Signals(head, hidden, numbered, again)

    def rows(self, part: Any) -> States:
        """The same model's answer to some rows."""
        hidden, query, key, value = (
            [t[part] for t in tensors] for tensors in (self.hidden, self.query, self.key, self.value)
        )
        visible = self.visible if self.visible.shape[0] == 1 else self.visible[part]
        return States(hidden, query, key, value, self.weight, self.bias, visible, self.scale)


def states(
    seed: int,
    num_rows: int = 4,
    layers: int = 2,
    width: int = 6,
    heads: int = 2,
    length: int = 5,
    vocabulary: int = 7,
    causal: bool = False,
    grad: bool = False,
) -> States:
    """Random float64 states; heads are `width / heads` wide."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_(grad)

    visible = torch.ones(1, 1, length, length, dtype=torch.bool)
    hidden = [normal(num_rows, length, width) for _ in range(layers + 1)]
    query, key, value = ([normal(num_rows, heads, length, width // heads) for _ in range(layers)] for _ in range(3))
    return States(
        hidden,
        query,
        key,
        value,
        normal(vocabulary, width),
        normal(vocabulary),
        visible.tril() if causal else visible,
    )


def batch(seed: int, num_rows: int = 4, length: int = 5, vocabulary: int = 7) -> Batch:
    """Rows with padding and uneven numbers of targets; the last row is padding altogether."""
    draw = torch.Generator().manual_seed(seed)
    mask = torch.arange(length) < torch.randint(1, length + 1, (num_rows, 1), generator=draw)
    mask[-1] = False
    labels = torch.randint(0, vocabulary, (num_rows, length), generator=draw)
    labels[torch.rand(num_rows, length, generator=draw) < 0.5] = IGNORE
    return given(mask, labels.masked_fill(~mask, IGNORE))


def answering(logits: Tensor) -> Signals:
    """A model of which only its logits [B, L, V] are known: they are its last states, and its head changes nothing."""

    def head(fn: Any, rows: Tensor, layers: Any = (-1,)) -> Any:
        return fn(logits.flatten(0, 1)[rows], torch.eye(logits.shape[-1], dtype=logits.dtype), None)

    return Signals(head, {-1: logits, 1: logits})


def given(mask: Tensor, labels: Tensor | None = None) -> Batch:
    """A batch of which objectives read the mask and the labels alone."""
    labels = torch.full(mask.shape, IGNORE) if labels is None else labels
    return Batch(torch.zeros_like(labels), mask, mask.long(), labels, torch.arange(len(mask)))


def rows_of(batch: Batch, part: Any) -> Batch:
    """Some rows of a batch."""
    return given(batch.mask[part], batch.labels[part])
