"""Which optimizer moves the parameters, and which parameters it decays."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from megadistill.core.schema import Strict


class OptimizerConfig(Strict):
    """AdamW (Loshchilov & Hutter 2019) with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"
    learning_rate: float = Field(5e-4, gt=0)
    """Peak learning rate; `schedule` scales it."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    """Applied to matrices only: biases, norms and other vectors are not decayed."""
    gradient_clipping: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 switches clipping off."""


def build_optimizer(config: OptimizerConfig, module: nn.Module) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters of `module`, matrices and vectors in two groups."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=config.learning_rate, betas=config.betas, eps=config.eps
    )
