"""Which teacher layer teaches which student layer.

Layers are numbered as hidden states are: 0 is the embedding output, l the output of layer l, M the student's last, N
the teacher's. TinyBERT (Jiao et al. 2020, 3.1) writes the map as n = g(m), with g(0) = 0 for the embeddings and
g(M + 1) = N + 1 for the predictions; here the embeddings are `embedding_mse` and the predictions `soft_ce`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat

from megadistill.core.errors import UserError
from megadistill.core.types import Dims

Layers = Literal["uniform", "top", "bottom", "last"] | dict[int, int]
"""uniform: l <- l N / M; top: the teacher's last M layers; bottom: its first M; last: M <- N alone; or
{student layer: teacher layer}, each from 0 (the embedding output)."""


def _some(weights: list[float]) -> list[float]:
    if not any(weights):
        raise ValueError("the weights sum to nothing: make one of them larger than 0")
    return weights


Weights = Annotated[list[NonNegativeFloat], Field(min_length=1), AfterValidator(_some)]


def layer_map(layers: Layers, student: Dims, teacher: Dims) -> dict[int, int]:
    """{student layer: teacher layer}, by ascending student layer.

    Args:
        layers: a name, or the map itself: an objective's field of that name.

    Raises:
        UserError: a layer that a model does not have, or a name that means nothing at these depths.
    """
    ours, theirs = student.layers, teacher.layers
    if isinstance(layers, dict):
        return _checked(layers, ours, theirs)
    if layers == "last":
        return {ours: theirs}
    if theirs < ours:
        raise UserError(
            f"layers: the teacher has {theirs} layers for the student's {ours}",
            "every student layer needs a teacher layer of its own",
            f"name the pairs, as in {{{ours}: {theirs}}}",
        )
    if layers == "top":
        return {layer: theirs - ours + layer for layer in range(1, ours + 1)}
    if layers == "bottom":
        return {layer: layer for layer in range(1, ours + 1)}
    if theirs % ours:
        pairs = ", ".join(f"{layer}: {round(layer * theirs / ours)}" for layer in range(1, ours + 1))
        raise UserError(
            f"layers: the teacher's {theirs} layers do not divide by the student's {ours}",
            "every (teacher layers / student layers)-th layer is to be taken",
            f"name the pairs, as in {{{pairs}}}",
        )
    return {layer: layer * theirs // ours for layer in range(1, ours + 1)}


def weights_of(pairs: dict[int, int], given: Sequence[float] | None) -> list[float]:
    """One weight per pair, in the map's order; 1 where none is given.

    Raises:
        UserError: another number of weights than of pairs.
    """
    if given is None:
        return [1.0] * len(pairs)
    if len(given) != len(pairs):
        raise UserError(
            f"layer_weights: {len(given)} weights for {len(pairs)} pairs of layers",
            f"the pairs are {pairs}",
            "give one weight per pair, in that order",
        )
    return list(given)


def _checked(layers: dict[int, int], ours: int, theirs: int) -> dict[int, int]:
    wrong = [f"student layer {layer}" for layer in layers if not 0 <= layer <= ours]
    wrong += [f"teacher layer {layer}" for layer in layers.values() if not 0 <= layer <= theirs]
    if wrong or not layers:
        raise UserError(
            f"layers: there is no {', no '.join(wrong)}" if wrong else "layers: it names none",
            f"the student has 0 (embeddings) to {ours}, the teacher 0 to {theirs}",
            "name layers that exist",
        )
    return dict(sorted(layers.items()))
