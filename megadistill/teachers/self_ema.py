"""The student as it was: an exponential moving average of its own weights, or its snapshot of some steps ago."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.core.files import open_to_umask
from megadistill.core.types import Batch, Dims, Needs, Signals
from megadistill.models.signals import LanguageModel
from megadistill.teachers.base import Teacher
from megadistill.teachers.guard import Guard
from megadistill.teachers.online import sha256_of


class SelfEMATeacher(Teacher):
    """theta_teacher <- decay theta_teacher + (1 - decay) theta_student every so many steps (mean teacher, Tarvainen &
    Valpola 2017, equation 3). With `decay: 0` it is a snapshot of the student, taken anew every `every_steps`.

    It costs a forward pass and an fp32 copy of the student per rank. ZeRO 3, where no rank holds the student, cannot
    have it.
    """

    kind: Literal["self_ema"]
    reads_student: ClassVar[bool] = True
    decay: float = Field(0.999, ge=0, lt=1)
    """What stays of the average at an update; the rest is the student's."""
    every_steps: int = Field(1, gt=0)
    """Between two updates."""
    guard: Guard | None = None
    """It starts as the student, who knows nothing yet."""

    def build(self, device: torch.device) -> SelfEMASource:
        return SelfEMASource(self.decay, self.every_steps, device)


class SelfEMASource:
    """The built teacher; it has no model until it is attached to the student."""

    def __init__(self, decay: float, every_steps: int, device: torch.device) -> None:
        self.decay, self.every_steps, self.device = decay, every_steps, device
        self.models: tuple[LanguageModel, ...] = ()

    def attach(self, student: LanguageModel) -> None:
        """Start from the student as it is."""
        model = copy.deepcopy(student).float().to(self.device).eval().requires_grad_(False)
        self.models = (model,)

    @property
    def model(self) -> LanguageModel:
        return self.models[0]

    @property
    def dims(self) -> Dims:
        return self.model.dims

    @torch.no_grad()
    def signals(self, batch: Batch, needs: Needs) -> Signals:
        return self.model.signals(batch, needs.teacher_hidden, needs.teacher_attention)

    @torch.no_grad()
    def after_step(self, step: int, student: torch.nn.Module) -> None:
        """Move towards the student.

        Raises:
            UserError: ZeRO 3 keeps no whole weights on a rank.
        """
        if step % self.every_steps:
            return
        theirs = dict(student.named_parameters())
        for name, ours in self.model.named_parameters():
            now = theirs[name]
            if now.shape != ours.shape:
                raise UserError(
                    "teacher: self_ema needs the whole student on every rank",
                    f"{name} is in pieces (engine.zero_stage 3)",
                    "use engine.zero_stage 0, 1 or 2",
                )
            ours.lerp_(now.detach().to(ours.dtype), 1 - self.decay)

    def identity(self) -> dict[str, Any]:
        return {"kind": "self_ema", "decay": self.decay, "every_steps": self.every_steps}

    def save(self, folder: Path) -> None:
        """Write its weights; `load` of another process at that step goes on from them bit for bit."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True)
        values = {name: value.cpu().contiguous() for name, value in self.model.named_parameters()}
        save_file(values, folder / "ema.safetensors", metadata={"sha256": sha256_of(self.model)})
        open_to_umask(folder / "ema.safetensors")

    def load(self, folder: Path) -> None:
        """What `save` wrote."""
        from safetensors.torch import load_file

        values = load_file(folder / "ema.safetensors")
        for name, parameter in self.model.named_parameters():
            parameter.data.copy_(values[name])
