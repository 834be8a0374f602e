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

LAYER = re.compile(r"(?<=\.)(layer|layers|h)\.(\d+)\.")
"""How transformers names the layers of its stacks: `encoder.layer.3.`, `transformer.h.3.`."""


class Initialize(Strict):
    """Base of the ways to start."""

    kind: str


class Random(Initialize):
    """The architecture's own random initialisation, from the run's seed."""

    kind: Literal["random"] = "random"


class Folder(Initialize):
    """The weights of a folder or hub name; its shapes must be the student's."""

    kind: Literal["folder"]
    path: str


class TeacherLayers(Initialize):
    """Embeddings, vocabulary head and the listed layers of the teacher (Sanh et al. 2019, section 2)."""

    kind: Literal["teacher_layers"]
    layers: list[int] = Field(min_length=1)
    """0-based teacher layer for every student layer, in order: DistilBERT takes [0, 2, 4, 7, 9, 11]."""


def copy_teacher_layers(student: Any, teacher: Any, layers: list[int]) -> int:
    """Copy `teacher`'s weights into `student` (two transformers models), layer i from teacher layer `layers[i]`.

    A BERT teacher may have a DistilBERT student: names are translated, and the teacher's token-type embedding 0,
    which DistilBERT lacks, is folded into the position embeddings, so both embedding outputs are equal.

    Returns:
        how many values were copied.

    Raises:
        UserError: the layers do not fit, or a weight has no counterpart of its shape.
    """
    depth, available = student.config.num_hidden_layers, teacher.config.num_hidden_layers
    outside = [layer for layer in layers if not 0 <= layer < available]
    if len(layers) != depth or outside:
        raise UserError(
            f"student.init.layers has {len(layers)} entries for {depth} student layers"
            if len(layers) != depth
            else f"student.init.layers names layer(s) {outside}, and the teacher has 0 to {available - 1}",
            "student.init: teacher_layers",
            "name one teacher layer for every student layer",
        )
    given = teacher.state_dict()
    if student.config.model_type == "distilbert" and teacher.config.model_type == "bert":
        given = _bert_as_distilbert(given)
    taken: dict[str, Tensor] = {}
    problems = []
    for name, value in student.state_dict().items():
        source = LAYER.sub(lambda m: f"{m[1]}.{layers[int(m[2])]}.", name)
        if source not in given:
            problems.append(f"{name}: the teacher has no {source}")
        elif given[source].shape != value.shape:
            problems.append(f"{name}: {list(value.shape)}, the teacher's is {list(given[source].shape)}")
        else:
            taken[name] = given[source].to(value.dtype)
    if problems:
        raise UserError(
            "the student cannot be initialised from the teacher's layers",
            "; ".join(problems[:4]) + (f"; and {len(problems) - 4} more" if len(problems) > 4 else ""),
            "give the student the teacher's widths, or use student.init: {kind: random}",
        )
    student.load_state_dict(taken)
    return sum(v.numel() for v in taken.values())


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
    result[positions] = result[positions] + result["distilbert.embeddings.token_type_embeddings.weight"][0]
    return result


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random initialisation inside draws from `seed`; the global generators stay as they were."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
