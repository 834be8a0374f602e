"""A distillation of BERTs of any size, or of ViTs, with weights or without: what a plan is compared with."""

from __future__ import annotations

from typing import Any

import torch

from megadistill.core.types import IGNORE, Batch
from megadistill.engine.deepspeed import EngineConfig
from megadistill.engine.optimizer import OptimizerConfig, build_optimizer
from megadistill.models.heads import TaskHead
from megadistill.models.images import ImageModel, default_processor
from megadistill.models.loading import task_class
from megadistill.models.signals import LanguageModel
from megadistill.objectives.cosine import Cosine
from megadistill.objectives.hard_ce import HardCE
from megadistill.objectives.soft_ce import SoftCE
from megadistill.objectives.step import DistillStep
from megadistill.plan.footprint import footprint
from megadistill.plan.zero import DTYPES, Sharded
from megadistill.teachers.online import OnlineSource

VOCABULARY = 8192
OBJECTIVES = [
    SoftCE(kind="soft_ce", temperature=2, weight=5),
    HardCE(kind="hard_ce", weight=2),
    Cosine(kind="cosine", weight=1),
]
OF_TASKS = [SoftCE(kind="soft_ce", temperature=2, scope="targets"), HardCE(kind="hard_ce")]
CLASSES, SIZE = 10, 64
HEADS = {
    "label": TaskHead("label", CLASSES),
    "choice": TaskHead("choice", 4),
    "image": TaskHead("image", CLASSES, (), None, SIZE),
}
"""Of the tasks that `spec["task"]` names."""


def models(spec: dict[str, Any]) -> tuple[DistillStep, OnlineSource]:
    """A student of `layers` layers of width `hidden` and its objectives, and a teacher of twice as many; on the device
    that is the default."""
    head, objectives = HEADS.get(spec.get("task", "")), OF_TASKS if "task" in spec else OBJECTIVES
    teacher = OnlineSource("here", _model(2 * spec["layers"], spec["hidden"], head))
    student = _model(spec["layers"], spec["hidden"], head)
    losses = [objective.build(student.dims, teacher.dims) for objective in objectives]
    return DistillStep(student, objectives, losses), teacher


def peak(spec: dict[str, Any], ranks: int, on_gpu: bool) -> int:
    """Bytes that a rank is planned to hold at its most."""
    with torch.device("meta"):
        step, teacher = models(spec)
        step = step.to(DTYPES[spec["precision"]]).train()
    groups = [group["params"] for group in build_optimizer(OptimizerConfig(), step).param_groups]
    made = lambda: Sharded(engine(spec), groups, ranks, on_gpu=on_gpu)  # noqa: E731
    return footprint(step, teacher, batch(spec), made, spec["accumulation"], ranks, on_gpu=on_gpu).peak


def engine(spec: dict[str, Any]) -> EngineConfig:
    """`stage` and `precision`, with buckets that are small beside the models."""
    small = {"reduce_bucket_mib": 4, "allgather_bucket_mib": 4, "persistence_threshold": 0}
    return EngineConfig(zero_stage=spec["stage"], precision=spec["precision"], **small)


def batch(spec: dict[str, Any]) -> Batch:
    """`micro` examples: rows of 128 tokens, every seventh a target where there is no task; or images."""
    head = HEADS.get(spec.get("task", ""))
    choices = head.outputs if head is not None and head.kind == "choice" else 1
    rows, length = spec["micro"] * choices, 1 if head is not None and head.kind == "image" else 128
    ids = torch.arange(rows * length).view(-1, length) % VOCABULARY
    labels = torch.where(ids % 7 == 0, ids, IGNORE)
    if head is not None:
        labels = torch.full_like(ids, IGNORE)
        labels[::choices, 0] = 0
    whole = torch.ones_like(ids)
    pixels = torch.zeros(rows, 3, SIZE, SIZE, dtype=torch.uint8) if length == 1 else None
    return Batch(ids, whole.bool(), whole, labels, torch.arange(rows), pixels=pixels, choices=choices)


def _model(layers: int, hidden: int, head: TaskHead | None) -> LanguageModel:
    from transformers import BertConfig, BertForMaskedLM, ViTConfig

    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 4 * hidden}
    sizes["num_attention_heads"] = hidden // 64
    if head is None:
        return LanguageModel(BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **sizes)))
    if head.kind == "image":
        config = ViTConfig(image_size=SIZE, patch_size=8, **sizes, **head.config_fields())
        with torch.device("cpu"):
            processor = default_processor(SIZE)
        return ImageModel(task_class(head).from_config(config), processor)
    config = BertConfig(vocab_size=VOCABULARY, **sizes, **head.config_fields())
    return LanguageModel(task_class(head).from_config(config))
