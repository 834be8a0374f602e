"""A run that learns beside this one, as it was some steps ago (codistillation, Anil et al. 2018)."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field

from megadistill.core import log
from megadistill.core.errors import UserError
from megadistill.core.files import write_json
from megadistill.core.types import Batch, Dims, Needs, Signals
from megadistill.engine import checkpoint
from megadistill.models.loading import load_pretrained
from megadistill.models.signals import LanguageModel
from megadistill.teachers.base import Teacher
from megadistill.teachers.guard import Guard


class PeerTeacher(Teacher):
    """With e = `every_steps`, the teacher of steps (k e, (k + 1) e] is the other run's checkpoint of step (k - 1) e:
    always a fixed step, whichever run is faster, so that both can be repeated; e to 2 e steps stale, which
    codistillation bears (Anil et al. 2018, section 3.3). A faster run waits.

    Both runs set `checkpoint: {every_steps: e, keep_every_steps: e}`. Until step 2 e there is no peer: objectives on it
    need `ramp: {from_step: 2 e, ...}`.
    """

    kind: Literal["peer"]
    run: str
    """The other run's directory; it need not exist yet."""
    every_steps: int = Field(gt=0)
    """Between two checkpoints of the other run to learn from: e above."""
    wait_seconds: float = Field(3600, gt=0)
    """How long to wait for the other run's checkpoint before giving up."""
    guard: Guard | None = None
    """It starts knowing nothing, as its peer does."""

    @property
    def absent_until(self) -> int:
        """The last step without a peer."""
        return 2 * self.every_steps

    @property
    def meets_every(self) -> int:
        return self.every_steps

    @property
    def patience(self) -> float:
        return self.wait_seconds

    def build(self, device: torch.device) -> PeerSource:
        return PeerSource(Path(self.run), self.every_steps, self.wait_seconds, device)


class PeerSource:
    """The built teacher. Until the first peer is there it holds a copy of the student, to which nobody listens."""

    def __init__(self, run: Path, every_steps: int, wait_seconds: float, device: torch.device) -> None:
        self.run, self.every_steps, self.wait_seconds, self.device = run, every_steps, wait_seconds, device
        self.models: tuple[LanguageModel, ...] = ()
        self.step = 0
        """Of the checkpoint that teaches now; 0: none yet."""

    def attach(self, student: LanguageModel) -> None:
        self._use(copy.deepcopy(student))

    def _use(self, model: LanguageModel) -> None:
        if self.models:
            model.attends = self.models[0].attends
        self.models = (model.to(self.device).eval().requires_grad_(False),)

    @property
    def dims(self) -> Dims:
        return self.models[0].dims

    @torch.no_grad()
    def signals(self, batch: Batch, needs: Needs) -> Signals:
        return self.models[0].signals(batch, needs.teacher_hidden, needs.teacher_attention)

    def after_step(self, step: int, student: torch.nn.Module) -> None:
        """Take the peer's next checkpoint when it is time.

        Raises:
            UserError: it has not come, or has another vocabulary.
        """
        if step % self.every_steps == 0 and step > self.every_steps:
            self._take(step - self.every_steps)

    def _take(self, step: int) -> None:
        folder = self._committed(step)
        model = load_pretrained(str(folder / "student"))
        if model.dims.vocabulary != self.dims.vocabulary:
            raise UserError(
                f"the peer {self.run} has a vocabulary of {model.dims.vocabulary:,}, this run {self.dims.vocabulary:,}",
                "their distributions are compared entry by entry",
                "give both runs one data.tokenizer",
            )
        self._use(model)
        self.step = step

    def _committed(self, step: int) -> Path:
        """The peer's verified checkpoint of a step, waited for."""
        root, started, said = self.run / "checkpoints", time.monotonic(), False
        while True:
            found = checkpoint.committed(root) if root.is_dir() else []
            paths = [path for there, _, path in found if there == step]
            if paths:
                problems = checkpoint.damage(paths[0])
                if problems:
                    raise UserError(f"the peer's checkpoint {paths[0]} is damaged", problems[0], "resume the peer")
                return paths[0]
            if found and found[0][0] > step:
                raise UserError(
                    f"the peer {self.run} is at step {found[0][0]} and keeps no checkpoint of step {step}",
                    f"teacher.every_steps is {self.every_steps}",
                    f"set checkpoint.every_steps and checkpoint.keep_every_steps to {self.every_steps} in both",
                )
            if time.monotonic() - started > self.wait_seconds:
                raise UserError(
                    f"the peer {self.run} has not reached step {step} in {self.wait_seconds:g} seconds",
                    f"its newest checkpoint is of step {found[0][0] if found else 0}",
                    "start it beside this run, or raise teacher.wait_seconds; the same command continues this one",
                )
            if not said:
                log.get().info(f"waiting for {self.run} to reach step {step}")
                said = True
            time.sleep(0.5)

    def identity(self) -> dict[str, Any]:
        return {"kind": "peer", "run": str(self.run), "every_steps": self.every_steps}

    def save(self, folder: Path) -> None:
        """Which checkpoint teaches; the peer keeps it."""
        folder.mkdir(parents=True)
        write_json(folder / "peer.json", {"step": self.step})

    def load(self, folder: Path) -> None:
        """What `save` wrote."""
        step = int(json.loads((folder / "peer.json").read_text(encoding="utf-8"))["step"])
        if step:
            self._take(step)
