"""How a model's layers run as compiled code."""

from __future__ import annotations

import torch

from megadistill.models.interventions import layer_modules
from megadistill.models.signals import LanguageModel


def compile_layers(model: LanguageModel) -> None:
    """Let every layer run through torch.compile, from its first use on; equal layers share their code.

    The layers' own `forward` is what is compiled, not the model's: what stands around a layer stays as it is (hooks,
    states put in place of its output, activation checkpointing), and names and weights do too. A copy of the model
    would run the original's layers, so nothing may copy it afterwards.
    """
    for layer in layer_modules(model.hf):
        layer.forward = torch.compile(layer.forward)
