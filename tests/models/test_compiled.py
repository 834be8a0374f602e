"""Compiled layers answer as the others do, also where what goes into and out of them is looked at or replaced."""

import pytest
import torch

from megadistill.models.compiled import compile_layers
from megadistill.testing import tiny


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_compiled_layers_are_the_layers(architecture):
    batch = tiny.batch(3)
    plain, compiled = (tiny.language_model(architecture, 3, seed=1).eval() for _ in range(2))
    compile_layers(compiled)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    replaced = {1: torch.randn(*batch.ids.shape, plain.dims.hidden, generator=torch.Generator().manual_seed(0))}

    def answer(model):
        signals = model.signals(batch, frozenset({0, 1, -1}), frozenset({2}))
        again = signals.again(replaced, batch.mask)
        return [*signals.hidden.values(), signals.attention[2].key, again.hidden[-1]]

    for ours, theirs in zip(answer(compiled), answer(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    loss = sum(model.signals(batch, frozenset({-1})).hidden[-1].square().sum() for model in (plain, compiled))
    loss.backward()
    for (name, ours), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
