"""What a student knows before its first step: nothing, a folder's weights, or chosen layers of its teacher."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from megadistill.core.errors import UserError
from megadistill.core.schema import Strict
from megadistill.models.heads import answers, is_of_head
from megadistill.models.width import Width, narrower

LAYER = re.compile(r"(?<=\.)(layer|layers|h|blocks)\.(\d+)\.")
"""How transformers names the layers of its stacks: `encoder.layer.3.`, `transformer.h.3.`, `transformer.blocks.3.`."""

LayerChoice = Literal["uniform", "first", "last"] | list[int]


class Initialize(Strict):
    """Base of the ways to start."""

    kind: str


class Random(Initialize):
    """The architecture's own random initialisation, from the run's seed."""

    kind: Literal["random"] = "random"


class Folder(Initialize):
    """The weights of a model that is there already; its widths must be the student's."""

    kind: Literal["folder"]
    path: str
    """A folder in the Hugging Face format, a hub name, a run's directory (its newest checkpoint that verifies), or
    RUN@STEP."""
    layers: LayerChoice | None = Field(None, min_length=1)
    """Which of its layers, for a shallower student (by student.config), as for `teacher_layers`; None: all."""


class TeacherLayers(Initialize):
    """Embeddings, vocabulary head and chosen layers of the teacher (Sanh et al. 2019, section 2)."""

    kind: Literal["teacher_layers"]
    layers: LayerChoice = Field(min_length=1)
    """0-based teacher layer for every student layer, in order; or uniform (evenly, the first and the last among them:
    DistilBERT's [0, 2, 4, 7, 9, 11] for 6 of 12), first or last."""
    width: Width = "equal"
    """equal: the student's widths are the teacher's. slice: it keeps the first coordinates, heads and inner units.
    svd: like slice, but the residual stream keeps the principal directions of the teacher's embeddings."""


def chosen_layers(choice: LayerChoice, depth: int, available: int) -> list[int]:
    """0-based teacher layers for a student of `depth` layers.

    Raises:
        UserError: another number than the student has, or layers that the teacher has not.
    """
    if isinstance(choice, str):
        if depth > available:
            raise UserError(
                f"student.init.layers: {choice}, and the teacher has {available} layers for the student's {depth}",
                "student.init: teacher_layers",
                "name a teacher layer for every student layer, or take a shallower student",
            )
        if choice == "first":
            return list(range(depth))
        if choice == "last":
            return list(range(available - depth, available))
        return [round(i * (available - 1) / max(depth - 1, 1)) for i in range(depth)]
    outside = [layer for layer in choice if not 0 <= layer < available]
    if len(choice) != depth or outside:
        raise UserError(
            f"student.init.layers has {len(choice)} entries for {depth} student layers"
            if len(choice) != depth
            else f"student.init.layers names layer(s) {outside}, and the teacher has 0 to {available - 1}",
            "student.init: teacher_layers",
            "name one teacher layer for every student layer",
        )
    return choice


def copy_teacher_layers(student: Any, teacher: Any, layers: LayerChoice, width: Width = "equal") -> int:
    """Copy `teacher`'s weights into `student` (two transformers models), layer i from teacher layer `layers[i]`.

    A BERT teacher may have a DistilBERT student: names are translated, and the teacher's token-type embedding 0,
    which DistilBERT lacks, is folded into the position embeddings, so both embedding outputs are equal. A task's
    student takes the teacher's head where it has the same, and keeps its own where it has none such.

    Returns:
        how many values were copied.

    Raises:
        UserError: the layers do not fit, or a weight has no counterpart of its shape.
    """
    layers = chosen_layers(layers, student.config.num_hidden_layers, teacher.config.num_hidden_layers)
    _refuse_other_attention(student.config, teacher.config, layers)
    _refuse_unknown_names(student, layers)
    fit = narrower(student, teacher, width)
    given = teacher.state_dict()
    if student.config.model_type == "distilbert" and teacher.config.model_type == "bert":
        given = _bert_as_distilbert(given)
    taken: dict[str, Tensor] = {}
    problems = []
    for name, value in student.state_dict().items():
        source = _counterpart(name, layers)
        new_head = answers(student) != "tokens" and is_of_head(student, name)
        if source not in given:
            if not new_head:
                problems.append(f"{name}: the teacher has no {source}")
            continue
        theirs = given[source].to(value.dtype)  # before they are turned: 16 bits would round what comes out
        theirs = theirs if fit is None else fit.fit(name, theirs, value.shape)
        if theirs.shape == value.shape:
            taken[name] = theirs
        elif not new_head:
            problems.append(f"{name}: {list(value.shape)}, the teacher's is {list(given[source].shape)}")
    if problems:
        raise UserError(
            "the student cannot be initialised from the teacher's layers",
            "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else ""),
            "give the student the teacher's widths (or student.init.width: slice), or use student.init: {kind: random}",
        )
    student.load_state_dict(taken, strict=answers(student) == "tokens")
    return sum(v.numel() for v in taken.values())


def _counterpart(name: str, layers: list[int]) -> str:
    """The teacher's name of what the student has as `name`."""
    if layers == list(range(len(layers))):
        return name
    return LAYER.sub(lambda m: f"{m[1]}.{layers[int(m[2])]}.", name, count=1)


def _refuse_unknown_names(student: Any, layers: list[int]) -> None:
    """Layers that could not be told by their names would all be taken in the teacher's order."""
    depth = list(range(len(layers)))
    found = {int(match[2]) for name in student.state_dict() if (match := LAYER.search(name))}
    shared = getattr(student.config, "num_hidden_groups", None) == 1  # ALBERT: every layer is the same one
    if layers != depth and found != set(depth) and not shared:
        raise UserError(
            f"student.init.layers: {layers} cannot be chosen of a {student.config.model_type}",
            "its layers are not named in a way that megadistill knows, such as encoder.layer.3 or transformer.h.3",
            "set student.init.layers: first, or use student.init: {kind: random}",
        )


def _refuse_other_attention(student: Any, teacher: Any, layers: list[int]) -> None:
    """A layer that looked at a window would be put where the whole row is seen, or the other way round."""
    ours, theirs = getattr(student, "layer_types", None), getattr(teacher, "layer_types", None)
    if ours and theirs and list(ours) != [theirs[layer] for layer in layers]:
        raise UserError(
            "student.init.layers puts teacher layers where another kind of attention is",
            f"the student has {list(ours)}, the teacher's {layers} are {[theirs[layer] for layer in layers]}",
            f"set student.config.layer_types: {[theirs[layer] for layer in layers]}, or choose other layers",
        )


def _bert_as_distilbert(bert: dict[str, Tensor]) -> dict[str, Tensor]:
    """BERT's weights under DistilBERT's names."""
    renames = {
        "bert.": "distilbert.",
        "encoder.layer.": "transformer.layer.",
        "attention.self.query": "attention.q_lin",
        "attention.self.key": "attention.k_lin",
        "attention.self.value": "attention.v_lin",
        "attention.output.dense": "attention.out_lin",
        "attention.output.LayerNorm": "sa_layer_norm",
        "intermediate.dense": "ffn.lin1",
        "output.dense": "ffn.lin2",
        "output.LayerNorm": "output_layer_norm",
        "cls.predictions.transform.dense": "vocab_transform",
        "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
        "cls.predictions.decoder": "vocab_projector",
    }
    result = {}
    for name, value in bert.items():
        for old, new in renames.items():
            name = name.replace(old, new)
        result[name] = value
    positions = "distilbert.embeddings.position_embeddings.weight"
    types = result["distilbert.embeddings.token_type_embeddings.weight"]
    result[positions] = result[positions].float() + types[0].float()
    return result


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random initialisation inside draws from `seed`; the global generators stay as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
