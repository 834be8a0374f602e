"""Where a run's numbers can be watched besides its own metrics.jsonl: TensorBoard, Weights & Biases, trackio."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from megadistill.core import log
from megadistill.run.directory import RunDirectory

if TYPE_CHECKING:
    from megadistill.run.sections import LogConfig


class Tracker(Protocol):
    """Gets the numbers of one attempt."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in the run directory; steps that are trained again hide those of the attempt before."""

    def __init__(self, directory: RunDirectory, attempt: int, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(
            str(directory.tensorboard),
            purge_step=start_step + 1 if start_step else None,
            flush_secs=30,
            filename_suffix=f".attempt-{attempt}",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class Service:
    """`wandb` or `trackio`, which have the same interface. All attempts of a run are one run there.

    It may be out of reach: then that is told once, and training goes on without it.
    """

    def __init__(self, kind: str, project: str, directory: RunDirectory) -> None:
        self.kind = kind
        self._run: Any = None
        try:
            module = importlib.import_module(kind)
            name = f"{directory.path.name}-{directory.id[:6]}"
            more: dict[str, Any] = {"embed": False, "auto_log_cpu": False, "auto_log_gpu": False}
            if kind == "wandb":
                only = {"console": "off", "silent": True, "x_disable_stats": True, "x_disable_meta": True}
                settings = module.Settings(**only, disable_git=True)
                more = {"id": directory.id, "dir": str(directory.path), "settings": settings}
            self._run = module.init(project=project, name=name, resume="allow", **more)
            if kind == "wandb":  # which takes no step twice, as an attempt that goes on from a checkpoint has them
                self._run.define_metric("*", step_metric="step")
        except Exception as error:
            self._lost(error)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._run is not None:
            try:
                if self.kind == "wandb":
                    self._run.log({"step": step, **values})
                else:
                    self._run.log(dict(values), step=step)
            except Exception as error:
                self._lost(error)

    def close(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            try:
                run.finish()
            except Exception as error:
                self._lost(error)

    def _lost(self, error: Exception) -> None:
        self._run = None
        log.get().warning(f"{self.kind} gets no numbers from here on: {type(error).__name__}: {error}")


def open_trackers(config: LogConfig, directory: RunDirectory, attempt: int, start_step: int) -> list[Tracker]:
    """Those that the config asks for."""
    trackers: list[Tracker] = [TensorBoard(directory, attempt, start_step)] if config.tensorboard else []
    return [*trackers, *(Service(kind, config.project, directory) for kind in config.services)]
