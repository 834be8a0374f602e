"""How the output of chosen layers is replaced during a forward pass (interchange interventions, Geiger et al. 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


def replacing(hf: Any, values: Mapping[int, Tensor], where: Tensor | None, known: Tensor | None = None) -> Any:
    """A context: inside, the output of layer l (from 1) is `values[l]` [B, L, H] wherever `where` [B, L].

    Args:
        known: [B, L, H] what the lowest of these layers gives of itself. That layer and those below it are then not run
            again, which leaves the hidden states below it unknown.
    """
    return _replacing(hf, values, where, known) if where is not None else nullcontext()


@contextmanager
def _replacing(hf: Any, values: Mapping[int, Tensor], where: Tensor, known: Tensor | None) -> Iterator[None]:
    depth = hf.config.num_hidden_layers
    outside = [layer for layer in values if not 1 <= layer <= depth]
    assert not outside, f"layers {outside} of {depth}"
    skipped = min(values) if values and known is not None else 0
    calls = 0

    def instead(original: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **given: Any) -> Any:
            nonlocal calls
            calls += 1
            hidden = known if calls <= skipped else original(*args, **given)
            assert isinstance(hidden, Tensor), "transformers' layers return their hidden states alone"
            if calls in values:
                hidden = torch.where(where.unsqueeze(-1), values[calls].to(hidden.dtype), hidden)
            return hidden

        return forward

    # their forward, not a hook on it: what a hook could replace has been computed already
    before = [(module, module.__dict__.get("forward")) for module in layer_modules(hf)]
    for module, _ in before:
        module.forward = instead(module.forward)
    try:
        yield
    finally:
        for module, own in before:
            del module.forward
            if own is not None:
                module.forward = own
    assert calls == depth, f"{calls} layers ran, of {depth}"
