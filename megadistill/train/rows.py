"""What a rank trained on, written down row by row: the evidence for "every row once per epoch"."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from torch import Tensor

from megadistill.core.types import Batch


class RowLog:
    """`logs/rows-rank-0007.jsonl`: one line a step, appended when the step is done."""

    def __init__(self, run: Path, attempt: int, rank: int) -> None:
        self.path, self.attempt = run / "logs" / f"rows-rank-{rank:04d}.jsonl", attempt

    def write(self, step: int, micro_batches: Sequence[Batch]) -> None:
        """Row numbers, and a hash of each row's inputs and of its labels (so of its masks)."""
        line = {
            "step": step,
            "attempt": self.attempt,
            "rows": [row for batch in micro_batches for row in batch.rows.tolist()],
            "inputs": [_hash(row) for b in micro_batches for row in (b.ids if b.pixels is None else b.pixels)],
            "labels": [_hash(row) for batch in micro_batches for row in batch.labels],
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _hash(row: Tensor) -> str:
    return blake2b(row.numpy().tobytes(), digest_size=8).hexdigest()
