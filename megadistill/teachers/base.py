"""What a teacher is: something that answers a batch with signals, and may move after each step."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from megadistill.core.schema import Strict
from megadistill.core.types import Batch, Dims, Needs, Signals


class Source(Protocol):
    """A built teacher."""

    dims: Dims

    def signals(self, batch: Batch, needs: Needs) -> Signals:
        """Its answer to one micro-batch, outside autograd."""
        ...

    def after_step(self, step: int, student: torch.nn.Module) -> None:
        """Called after every optimizer step; a frozen teacher does nothing."""
        ...

    def identity(self) -> dict[str, Any]:
        """What a checkpoint records of it (name, sha256): a frozen teacher is a reference, never a copy."""
        ...


class Teacher(Strict):
    """Base of every teacher source's config."""

    kind: str

    def fetch(self) -> None:
        """Bring here, while there is network, what `build` will read without; `prepare` calls it."""

    def build(self, device: torch.device) -> Source:
        raise NotImplementedError
