"""Which optimizer moves the parameters, and which parameters it decays."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from megadistill.core.schema import Strict


class OptimizerConfig(Strict):
    """AdamW (Loshchilov & Hutter 2019) with decoupled weight decay, or Adadelta (Zeiler 2012)."""

    kind: Literal["adamw", "adadelta"] = "adamw"
    """adadelta is what Tang et al. (2019) train their BiLSTMs with. Its runs go on only at the number of ranks and the
    ZeRO stage that they have begun with."""
    learning_rate: float = Field(5e-4, gt=0)
    """Peak learning rate; `schedule` scales it. Adadelta's is usually 1."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's."""
    rho: float = Field(0.95, gt=0, lt=1)
    """Adadelta's share of the past in its running means of squares."""
    eps: float = Field(1e-6, gt=0)
    """Added to the root that an update is divided by; Adadelta adds it below the root."""
    weight_decay: float = Field(0.0, ge=0)
    """Applied to matrices only: biases, norms and other vectors are not decayed."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""

    @model_validator(mode="after")
    def _fields_are_of_this_kind(self) -> OptimizerConfig:
        strange = {"adamw": "rho", "adadelta": "betas"}[self.kind]
        if strange in self.model_fields_set and getattr(self, strange) != type(self).model_fields[strange].default:
            raise ValueError(f"{strange}: {self.kind} has none")
        return self


def build_optimizer(config: OptimizerConfig, module: nn.Module) -> torch.optim.Optimizer:
    """Over the trainable parameters of `module`, matrices and vectors in two groups."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if config.kind == "adadelta":
        return torch.optim.Adadelta(groups, lr=config.learning_rate, rho=config.rho, eps=config.eps)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, eps=config.eps, fused=True)
