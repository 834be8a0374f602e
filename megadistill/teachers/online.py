"""A frozen language model that answers in the same step as the student learns."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from megadistill.core.errors import UserError
from megadistill.core.files import sha256_file, sha256_json
from megadistill.core.types import Batch, Dims, Needs, Signals
from megadistill.data.config import DataConfig
from megadistill.data.tokenization import load_tokenizer
from megadistill.models.compiled import compile_layers
from megadistill.models.loading import load_empty, load_pretrained
from megadistill.models.signals import LanguageModel
from megadistill.teachers import apart
from megadistill.teachers.base import Teacher


class OnlineTeacher(Teacher):
    """A pretrained model: evaluation mode, no gradients, never changed."""

    kind: Literal["online"]
    path: str
    """A local folder in the Hugging Face format, or a hub name."""
    revision: str | None = None
    """Hub branch, tag or commit."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of its weights; `auto` is bfloat16 on a GPU (float16 on one that lacks it) and float32 on a CPU."""

    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """How it attends: PyTorch's scaled_dot_product_attention; transformers' plain one; or that of the flash-attn
    package (a GPU and 16-bit weights), which leaves padding out of the computation."""
    compile: bool = False
    """Run its layers through torch.compile: some of the first step's time for fewer passes over memory."""
    placement: Literal["replicated", "sharded", "offloaded", "own_ranks"] = "replicated"
    """Where its weights are: whole on every rank; each rank's share on its device, whole layers gathered for their use
    (ZeRO 3); each rank's share in host memory; or whole on the last `own_ranks` ranks of the run, which do nothing else
    (their answers come as hidden states, so no attention can be asked for). The losses are the same, to the last bit in
    float32."""
    own_ranks: int = Field(1, gt=0)
    """placement own_ranks: how many of the ranks that the run is started with."""

    def fetch(self) -> None:
        load_pretrained(self.path, self.revision)  # the hub's cache keeps it
        with suppress(UserError):  # to be compared with the data's; not every teacher comes with one
            load_tokenizer(self.path)

    def paths(self) -> list[str]:
        return [self.path]

    def cannot(self, needs: Needs) -> str:
        if self.placement == "own_ranks" and (needs.teacher_attention or needs.again):
            return "from its own ranks it sends hidden states only; set another teacher.placement"
        if self.attention != "sdpa" and needs.teacher_attention:
            return f"what it attends with is seen in sdpa only, not in {self.attention}; set teacher.attention: sdpa"
        return ""

    def cannot_read(self, data: DataConfig) -> str:
        if self.attention != "sdpa" and data.attention == "document":
            return (
                f"documents are kept apart by a mask of sdpa, which {self.attention} has not; set teacher.attention: "
                "sdpa, or data.attention: row"
            )
        return ""

    @model_validator(mode="after")
    def _whole_where_compiled(self) -> OnlineTeacher:
        if self.compile and self.placement != "replicated":
            raise ValueError(f"compile: placement: {self.placement} moves its weights between layers; leave it out")
        return self

    def build(self, device: torch.device) -> OnlineSource:
        model = load_pretrained(self.path, self.revision, self.torch_dtype(device), self.attention)
        if self.compile:
            compile_layers(model)
        if self.placement == "own_ranks":
            link = apart.current()  # none where only scores are wanted: it is asked here then
            if link is None:
                return OnlineSource(self.path, model.to(device))
            return OnlineSource(self.path, apart.FarModel(model.hf, link, device))
        model.placement = self.placement
        # what shall not be whole on a device is not put there even once
        return OnlineSource(self.path, model.to(device) if self.placement == "replicated" else model)

    def stored(self) -> LanguageModel:
        return load_pretrained(self.path, self.revision, "auto")

    def empty(self, device: torch.device) -> OnlineSource:
        model = load_empty(self.path, self.revision).to(self.torch_dtype(device))
        model.placement = self.placement
        return OnlineSource(self.path, model)

    def torch_dtype(self, device: torch.device) -> torch.dtype:
        """The dtype that the weights have on `device`."""
        if self.dtype != "auto":
            return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.dtype]
        if device.type != "cuda":
            return torch.float32
        # without emulation: a GPU before Ampere computes bfloat16 many times slower than float16
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


class OnlineSource:
    """The built teacher."""

    def __init__(self, path: str, model: LanguageModel) -> None:
        self.path = path
        self._sha256: str | None = None
        self.model = model.eval().requires_grad_(False)
        self.models = (self.model,)

    @property
    def dims(self) -> Dims:
        return self.model.dims

    @torch.no_grad()
    def signals(self, batch: Batch, needs: Needs) -> Signals:
        signals: Signals = self.model(batch, needs.teacher_hidden, needs.teacher_attention)
        return signals

    def attach(self, student: LanguageModel) -> None:
        """It has a model of its own; a body that is elsewhere is let go, now that the student has started from it."""
        if isinstance(self.model, apart.FarModel):
            self._sha256 = sha256_of(self.model)
            self.model.let_go()

    def after_step(self, step: int, student: torch.nn.Module) -> None:
        """It never moves."""

    def save(self, folder: Path) -> None:
        """A reference in the manifest is enough."""

    def load(self, folder: Path) -> None:
        """There is nothing to load."""

    def identity(self) -> dict[str, Any]:
        """Its path and the sha256 of its weights, so that a swapped teacher is noticed."""
        return {"kind": "online", "path": self.path, "sha256": self._sha256 or sha256_of(self.model)}


def sha256_of(model: torch.nn.Module) -> str:
    """Over the names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def weights_sha256(path: str) -> str:
    """Over the files of weights in a model's folder; empty where there is no such folder."""
    files = sorted(file for pattern in ("*.safetensors", "*.bin") for file in Path(path).glob(pattern))
    return sha256_json([[file.name, sha256_file(file)] for file in files]) if files else ""
