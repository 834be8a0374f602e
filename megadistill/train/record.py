"""What a run writes down of its steps: metrics.jsonl (the truth), trackers, and the console's line."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

import torch

from megadistill.core import log
from megadistill.run.directory import RunDirectory, end_cut_line
from megadistill.train.progress import Progress
from megadistill.train.trackers import Tracker, open_trackers

if TYPE_CHECKING:
    from megadistill.run.sections import LogConfig


class Recorder:
    """Records what it is given, on rank 0; does nothing on the others.

    Names are paths: `train/loss`, `train/objective/<label>`, `teacher/loss`, `train/learning_rate`,
    `train/gradient_norm`, `train/tokens_per_second`, `train/data_wait` (share of the step), `train/memory_gb` (rank 0's
    peak so far: its GPU's, or the process's where there is none), `heldout/...`.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: LogConfig,
        attempt: int,
        is_main: bool,
        *,
        total_steps: int | None = None,
        start_step: int = 0,
    ) -> None:
        """
        Args:
            total_steps: the step at which the run ends; None: no console lines.
            start_step: the step that this attempt resumed from. Later steps of earlier attempts stay in
                metrics.jsonl, where the attempt tells them apart, and are hidden in TensorBoard.
        """
        self.directory, self.config, self.attempt, self.is_main = directory, config, attempt, is_main
        self.start_step = start_step
        self._lines: IO[str] | None = None
        self._trackers: list[Tracker] | None = None
        self._progress = Progress(total_steps, start_step) if is_main and total_steps else None

    def due(self, step: int) -> bool:
        """Whether `step` should be fetched and shown: every so often, and an attempt's first."""
        return step % self.config.every_steps == 0 or step == self.start_step + 1

    def step(self, step: int, values: Mapping[str, float], extra: Mapping[str, Any] | None = None) -> None:
        """Record one step of training; its line goes to the console when due.

        Args:
            values: numbers by name. `train/loss` is also written exactly, as `loss_hex`.
            extra: what else belongs into the line, such as `parameter_hash`.
        """
        if not self.is_main:
            return
        self._write(step, {**values, "train/memory_gb": _peak_memory() / 1e9}, extra or {})
        if self._progress is not None and self.due(step):
            self._progress.update(step, values)

    def scores(self, step: int, values: Mapping[str, float]) -> None:
        """Record held-out scores after `step`; they always get a console line."""
        if not self.is_main:
            return
        self._write(step, values, {})
        named = [f"{name.rpartition('/')[2]} {value:.4g}" for name, value in values.items()]
        log.get().info(f"held out after step {step} | {' '.join(named)}")

    def close(self) -> None:
        """Flush everything; the recorder is not used again."""
        for part in (self._lines, *(self._trackers or ()), self._progress):
            if part is not None:
                part.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, step: int, values: Mapping[str, float], extra: Mapping[str, Any]) -> None:
        row: dict[str, Any] = {
            "step": step,
            "attempt": self.attempt,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            # NaN is no JSON; loss_hex still tells it from infinity
            **{name: value if math.isfinite(value) else None for name, value in values.items()},
        }
        if "train/loss" in values:
            row["loss_hex"] = float(values["train/loss"]).hex()
        row.update(extra)
        if self._lines is None:
            end_cut_line(self.directory.metrics)
            self._lines = open(self.directory.metrics, "a", encoding="utf-8")  # noqa: SIM115 open for the run
        self._lines.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._lines.flush()
        if self._trackers is None:
            self._trackers = open_trackers(self.config, self.directory, self.attempt, self.start_step)
        for tracker in self._trackers:
            tracker.log(step, values)


def _peak_memory() -> int:
    """Bytes, so far, of this process; on a GPU if it uses one."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
