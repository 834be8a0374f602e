"""A distillation of BERTs of any size, with weights or without: what a plan is compared with."""

from __future__ import annotations

from typing import Any

import torch

from megadistill.core.types import IGNORE, Batch
from megadistill.engine.deepspeed import EngineConfig
from megadistill.engine.optimizer import OptimizerConfig, build_optimizer
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


def models(spec: dict[str, Any]) -> tuple[DistillStep, OnlineSource]:
    """A student of `layers` layers of width `hidden` and its objectives, and a teacher of twice as many; on the device
    that is the default."""
    teacher = OnlineSource("here", _bert(2 * spec["layers"], spec["hidden"]))
    student = _bert(spec["layers"], spec["hidden"])
    losses = [objective.build(student.dims, teacher.dims) for objective in OBJECTIVES]
    return DistillStep(student, OBJECTIVES, losses), teacher


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
    """`micro` rows of 128 tokens, every seventh a target."""
    ids = torch.arange(spec["micro"] * 128).view(-1, 128) % VOCABULARY
    labels = torch.where(ids % 7 == 0, ids, IGNORE)
    whole = torch.ones_like(ids)
    return Batch(ids, whole.bool(), whole, labels, torch.arange(spec["micro"]))


def _bert(layers: int, hidden: int) -> LanguageModel:
    from transformers import BertConfig, BertForMaskedLM

    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": 4 * hidden}
    return LanguageModel(BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, num_attention_heads=hidden // 64, **sizes)))
