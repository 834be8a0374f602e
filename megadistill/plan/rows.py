"""What the rows of a run are like: how many there are, how long, and a micro-batch of them without numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.core.types import IGNORE, Batch
from megadistill.data.stream import Stream
from megadistill.models.heads import TaskHead
from megadistill.run.config import RunConfig
from megadistill.tasks.augment.kept import are_made
from megadistill.tasks.base import Examples, Task, TokenTask

SAMPLE = 64
"""Steps whose padding is measured, from all over a run."""


@dataclass(frozen=True)
class Counted:
    """The rows of a task, as training takes them; an image is a row of one token."""

    examples: int
    """To train on, with their variants."""
    each: int
    """Rows of an example."""
    tokens: float
    """Of a row, in the mean."""
    width: float
    """The same with what pads it to the longest row of its micro-batch."""
    longest: int
    """Tokens of the longest."""

    @property
    def typical(self) -> int:
        """Positions of a row of the mean width."""
        return max(round(self.width), 1)


def opened(task: Task) -> Examples:
    """The training rows of a task.

    Raises:
        UserError: a file is missing, or says what it must not; or its variants are still to be made, which may take
            hours.
    """
    if isinstance(task, TokenTask) and task.augment is not None and not are_made(task.augment, task.chosen):
        raise UserError(
            "plan cannot count the rows of task.augment",
            f"the variants of the examples are not in {task.augment.cache} yet",
            "run `megadistill prepare FILE` first, or plan without them: task.augment=null",
        )
    return task.open("train").rows


def counted(rows: Examples, config: RunConfig, students: int) -> Counted:
    """Means are those of `SAMPLE` steps of a rank.

    Args:
        config: with a number for `batch.micro_size`.
        students: ranks that learn.
    """
    examples = sum(rows.sizes)
    if config.words is None:
        return Counted(examples, 1, 1.0, 1.0, 1)
    batch = config.batch
    stream = Stream(
        rows, World(0, students), batch.global_size, batch.rows_per_pass, config.seed, sizes=batch.later_sizes
    )
    steps = np.unique(np.linspace(0, config.steps - 1, SAMPLE).astype(np.int64))
    some = [micro_batch for step in steps for micro_batch in stream.take(int(step))]
    number = sum(len(one.ids) for one in some)
    tokens, positions = sum(len(one.attended) for one in some), sum(one.ids.numel() for one in some)
    return Counted(examples, rows.choices, tokens / number, positions / number, int(rows.lengths.max()))


def micro_batch(config: RunConfig, vocabulary: int, width: int, head: TaskHead | None) -> Batch:
    """As the data will give them: whole rows of `width` positions, in pretraining of one document with as many targets
    as are asked for, in a task with an answer each. Images have shapes only."""
    choices = head.outputs if head is not None and head.kind == "choice" else 1
    rows = config.batch.rows_per_pass * choices
    ids = torch.arange(rows * width).view(rows, width) % max(vocabulary, 1)
    labels = torch.full_like(ids, IGNORE)
    more: dict[str, Any] = {}
    if head is None:
        _mask(config, ids, labels)
    elif head.kind == "span":
        more["spans"] = torch.zeros(rows, 2, dtype=torch.int64)
    else:
        labels[::choices, 0] = 0
        if head.kind == "value":
            more["values"] = torch.zeros(rows)
        if head.kind == "image":
            assert head.size is not None
            more["pixels"] = torch.empty(rows, 3, head.size, head.size, dtype=torch.uint8, device="meta")
    whole = torch.ones_like(ids)
    return Batch(ids, whole.bool(), whole, labels, torch.arange(rows), choices=choices, **more)


def _mask(config: RunConfig, ids: torch.Tensor, labels: torch.Tensor) -> None:
    if config.text.targets.kind == "clm":
        labels[:, :-1] = ids[:, 1:]
        return
    number = ids.numel()
    share = getattr(config.text.targets, "probability", 1.0)
    chosen = np.linspace(0, number - 1, max(round(share * number), 1)).astype(np.int64)
    labels.view(-1)[torch.from_numpy(chosen)] = ids.view(-1)[torch.from_numpy(chosen)]
