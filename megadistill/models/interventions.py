"""How the output of chosen layers is replaced during a forward pass (interchange interventions, Geiger et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from megadistill.core.errors import UserError


def layer_modules(hf: Any) -> list[nn.Module]:
    """The modules that a transformers body runs as its layers, in order; a shared one stands once (ALBERT).

    Raises:
        UserError: none are found.
    """
    depth = hf.config.num_hidden_layers
    if hf.config.model_type == "albert":
        return [layer for group in hf.base_model.encoder.albert_layer_groups for layer in group.albert_layers]
    for module in hf.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return list(module)
    raise UserError(
        f"{type(hf).__name__} has no list of {depth} layers", "", "leave out objectives that replace hidden states"
    )


def replacing(hf: Any, values: Mapping[int, Tensor], where: Tensor | None) -> Any:
    """A context: inside, the output of layer l (from 1) is `values[l]` [B, L, H] wherever `where` [B, L].

    Hooks on the layer modules; they are gone afterwards.
    """
    return _replacing(hf, values, where) if where is not None else nullcontext()


@contextmanager
def _replacing(hf: Any, values: Mapping[int, Tensor], where: Tensor) -> Iterator[None]:
    depth = hf.config.num_hidden_layers
    outside = [layer for layer in values if not 1 <= layer <= depth]
    assert not outside, f"layers {outside} of {depth}"
    calls = 0

    def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls not in values:
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = torch.where(where.unsqueeze(-1), values[calls].to(hidden.dtype), hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    # first of all hooks: transformers collects hidden states by hooks too, and must see what was put in
    handles = [module.register_forward_hook(replace, prepend=True) for module in layer_modules(hf)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    assert calls == depth, f"{calls} layers ran, of {depth}"
