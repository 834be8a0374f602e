"""What a transformers model answers with: its output matrix, and what it does to its last states before it.

Language models answer at every position over a vocabulary. A task's model answers once a row (a class or a number, read
at the first position, or at the last attended one where positions see only what precedes them), at every position
whether the answer starts or ends there, or once for several rows, each of which it scores: which of them is right. All
of them are a `head(fn, rows)`: hidden states, a weight and a bias.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from megadistill.core.errors import UserError
from megadistill.core.types import AnswerKind

_ENDINGS: dict[str, AnswerKind] = {
    "ForSequenceClassification": "label",
    "ForQuestionAnswering": "span",
    "ForImageClassification": "image",
    "ForImageClassificationWithTeacher": "image",
    "ForMultipleChoice": "choice",
}


@dataclass(frozen=True)
class TaskHead:
    """What a task asks a model for."""

    kind: AnswerKind
    outputs: int
    """Classes or choices; 1 for a number; 2 for a span: where it starts and where it ends."""
    names: tuple[str, ...] = ()
    """Of the classes or choices, by number; kept in the exported config."""
    processor: Any = None
    """Of images: transformers' image processor, which makes pixels of them."""
    size: int | None = None
    """Of images: so many pixels on each side."""

    def config_fields(self) -> dict[str, Any]:
        """The fields of a transformers config that say so."""
        if self.kind == "span":
            return {"num_labels": 2}
        names = self.names or tuple(f"LABEL_{number}" for number in range(self.outputs))
        problem = "regression" if self.kind == "value" else "single_label_classification"
        return {
            "num_labels": self.outputs,
            "id2label": dict(enumerate(names)),
            "label2id": {name: number for number, name in enumerate(names)},
            "problem_type": problem,
        }


def answers(hf: Any) -> AnswerKind:
    """What a transformers model answers with; a classifier with one output gives a number."""
    for ending, kind in _ENDINGS.items():
        if type(hf).__name__.endswith(ending):
            return "value" if kind == "label" and hf.config.num_labels == 1 else kind
    return "tokens"


def is_causal(hf: Any) -> bool:
    """Whether its kind of model sees only what precedes a position."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    if answers(hf) == "tokens":
        return type(hf).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    kind = type(hf.config)
    return kind in AutoModelForCausalLM._model_mapping and kind not in AutoModelForMaskedLM._model_mapping


def output_layer(hf: Any) -> nn.Linear:
    """The linear map onto the vocabulary, the classes, or start and end.

    Raises:
        UserError: it has none.
    """
    if answers(hf) == "tokens":
        found = getattr(hf, "lm_head", None)
        if not isinstance(found, nn.Linear):  # asked second: it wants input embeddings, which may be elsewhere
            found = hf.get_output_embeddings()
    else:
        names = ("score", "qa_outputs", "classifier")
        found = next((getattr(hf, name) for name in names if hasattr(hf, name)), None)
        found = getattr(found, "out_proj", found)  # RoBERTa keeps it in a module with what comes before
    if not isinstance(found, nn.Linear):
        what = "vocabulary head" if answers(hf) == "tokens" else "output layer"
        raise UserError(
            f"{type(hf).__name__} has no linear {what}",
            f"its output is {type(found).__name__}",
            "use a masked or causal language model" if answers(hf) == "tokens" else "use BERT or one like it",
        )
    return found


def output_layers(hf: Any) -> list[nn.Linear]:
    """One, or of a vision model with a distillation token two: that of the class, then that of the distillation.

    Raises:
        UserError: it has none.
    """
    if answers(hf) != "image":
        return [output_layer(hf)]
    linear = [(name, part) for name, part in hf.named_modules() if isinstance(part, nn.Linear)]
    found = [(name, part) for name, part in linear if part.out_features == hf.config.num_labels]
    distilling = [part for name, part in found if "dist" in name]
    classes = [part for name, part in found if "dist" not in name]
    if not classes:
        raise UserError(
            f"{type(hf).__name__} has no linear output layer",
            f"none of its linear maps has {hf.config.num_labels} outputs",
            "use deit, vit, regnet, convnext or one like them",
        )
    return [*classes[-1:], *distilling[-1:]]


def is_of_head(hf: Any, name: str) -> bool:
    """Whether a parameter belongs to the head, not to the body: what a new task starts at random."""
    return not name.startswith(f"{hf.base_model_prefix}.") or ".pooler" in name


def read_at(hf: Any, rows: Tensor, mask: Tensor, choices: int = 1) -> Tensor:
    """The flat positions that a model answers from when it is asked at `rows` of [B * L]; `mask` is [B, L], and
    `choices` rows are one example."""
    if answers(hf) not in ("label", "value", "choice"):
        return rows
    length = mask.shape[1]
    first = rows // length * length
    if answers(hf) == "choice":  # of each example asked about: the first position of all its rows, [N * choices]
        return (first.unsqueeze(1) + length * torch.arange(choices, device=rows.device)).flatten()
    if not is_causal(hf):
        return first
    return first + (mask.sum(1) - 1).clamp(min=0)[rows // length]


def as_entries(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, choices: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The scores of an example's rows as the logits of one: what scores each, as a head over all of them together.

    Args:
        hidden: [N * choices, H], `weight` [1, H], `bias` [1] or None, of the head that scores a row.

    Returns:
        hidden [N, choices * H], weight [choices, choices * H] (once on each block of the diagonal), bias [choices].
    """
    diagonal = torch.eye(choices, dtype=weight.dtype, device=weight.device)
    together = hidden.reshape(-1, choices * hidden.shape[-1])
    return together, torch.kron(diagonal, weight), None if bias is None else bias.expand(choices).contiguous()


def transform(hf: Any, hidden: Tensor) -> Tensor:
    """What lies between the last hidden state and the output layer: [N, H] -> [N, H]."""
    kind = hf.config.model_type
    if answers(hf) == "tokens":
        return _of_tokens(hf, kind, hidden)
    if hasattr(hf, "before_output"):  # a model of this package
        return hf.before_output(hidden)
    if answers(hf) == "span":
        if kind == "modernbert":
            return hf.drop(hf.head(hidden))
        return hf.dropout(hidden) if kind == "distilbert" else hidden
    if kind == "bert":
        return hf.dropout(hf.bert.pooler.activation(hf.bert.pooler.dense(hidden)))
    if kind == "distilbert":
        return hf.dropout(torch.relu(hf.pre_classifier(hidden)))
    if kind in ("roberta", "xlm-roberta") and answers(hf) == "choice":
        pooler = hf.base_model.pooler
        return hf.dropout(pooler.activation(pooler.dense(hidden)))
    if kind in ("roberta", "xlm-roberta"):
        head = hf.classifier
        return head.dropout(torch.tanh(head.dense(head.dropout(hidden))))
    if kind == "albert":
        return hf.dropout(hf.albert.pooler_activation(hf.albert.pooler(hidden)))
    if kind == "modernbert":
        return hf.drop(hf.head(hidden))
    return hidden


def _of_tokens(hf: Any, kind: str, hidden: Tensor) -> Tensor:
    if kind == "bert" and hasattr(hf, "cls"):
        return hf.cls.predictions.transform(hidden)
    if kind == "distilbert":
        return hf.vocab_layer_norm(hf.activation(hf.vocab_transform(hidden)))
    if kind in ("roberta", "xlm-roberta") and hasattr(hf.lm_head, "dense"):
        return hf.lm_head.layer_norm(torch.nn.functional.gelu(hf.lm_head.dense(hidden)))
    if kind == "albert":
        head = hf.predictions
        return head.LayerNorm(head.activation(head.dense(hidden)))
    if kind == "modernbert":
        return hf.head(hidden)
    return hidden
