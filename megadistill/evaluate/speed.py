"""How large a model is and how fast it answers, measured as DistilBERT's paper did (Sanh et al. 2019, table 3).

One full pass over STS-B's dev set, on the CPU, with batches of 1; and of 32. Padding is to the longest of a batch.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megadistill.core.types import Batch
from megadistill.models.signals import LanguageModel
from megadistill.tasks.glue import GlueTask

FLOPS_LENGTH = 128
"""Tokens of the row whose FLOPs are counted, as in TinyBERT's table 1."""


@torch.no_grad()
def speed(
    model: LanguageModel, folder: Path, glue: Path, tokenizer: str, max_rows: int | None = None
) -> dict[str, Any]:
    """Time full passes, and count.

    Args:
        folder: of the model's weights.
        glue: holds STS-B.
        max_rows: time the first so many pairs only; None: all 1,500.

    Returns:
        seconds of a pass at batch 1 and 32, `threads` and `num_rows` they are for; num_parameters, bytes of the
        weights' files, and forward FLOPs of one row of 128 tokens (a multiplication and an addition are two).
    """
    model = model.to("cpu").eval()
    length = min(FLOPS_LENGTH, _longest(model))
    task = GlueTask(kind="glue", name="stsb", folder=glue, tokenizer=tokenizer, sequence_length=length)
    rows = task.open("dev").rows
    number = min(len(rows.lengths), max_rows or len(rows.lengths))
    result: dict[str, Any] = {"threads": torch.get_num_threads(), "num_rows": number}
    for size in (1, 32):
        batches = [rows.take(np.arange(at, min(at + size, number))) for at in range(0, number, size)]
        for batch in batches[:3]:
            forward(model, batch)  # warm up
        started = time.perf_counter()
        for batch in batches:
            forward(model, batch)
        result[f"seconds_batch_{size}"] = time.perf_counter() - started
    result["num_parameters"] = sum(p.numel() for p in model.parameters())
    result["bytes"] = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    result["flops"] = flops(model, length)
    return result


def forward(model: LanguageModel, batch: Batch) -> Any:
    """What inference on a task runs: the body, and the head where it is a task's."""
    return _inferred(model)(input_ids=batch.ids, attention_mask=batch.mask.long())


def flops(model: LanguageModel, length: int) -> int:
    """Of one forward pass over one whole row."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.ones(1, length, dtype=torch.int64)
    # as plain products: the counter knows nothing of the CPU's fused attention
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        _inferred(model)(input_ids=ids, attention_mask=ids)
    return int(counter.get_total_flops())


def _inferred(model: LanguageModel) -> Any:
    return model.hf.base_model if model.answers in ("tokens", "choice") else model.hf


def _longest(model: LanguageModel) -> int:
    limit: int = getattr(model.hf.config, "max_position_embeddings", FLOPS_LENGTH)
    return limit
