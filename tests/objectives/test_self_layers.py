"""Deeper layers that teach shallower ones through the one head."""

import pytest
import torch

from megadistill.core.errors import UserError
from megadistill.core.types import Dims
from megadistill.objectives.self_layers import SelfLayers
from megadistill.testing import tiny


def ask(model, batch, **fields):
    objective = SelfLayers(kind="self_layers", **fields)
    return objective.build(model.dims, None)(model.signals(batch, objective.needs().student_hidden), None, batch)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_it_is_the_divergence_from_the_last_layers_answer(name):
    model, batch = tiny.language_model(name, 3, seed=1).double().eval(), tiny.batch(3, seed=2)
    hidden = model.signals(batch, frozenset({1, 2, -1})).hidden
    norm = next((getattr(model.hf.base_model, n) for n in ("ln_f", "norm", "final_norm")
                 if hasattr(model.hf.base_model, n)), lambda x: x)  # fmt: skip

    def divergence(teaching):
        total = 0.0
        for layer in (1, 2):
            logits = [head_of(model, states[batch.mask]) for states in (hidden[-1], norm(hidden[layer]))]
            log_p, log_q = (z.log_softmax(-1) for z in (teaching(logits[0]) / 2, logits[1] / 2))
            total = total + 4 * (log_p.exp() * (log_p - log_q)).sum()
        return total

    def gradient(total):
        found = torch.autograd.grad(total, list(model.parameters()), retain_graph=True, allow_unused=True)
        return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                          for p, g in zip(model.parameters(), found, strict=True)])  # fmt: skip

    term = ask(model, batch, layers=[1, 2], temperature=2.0)
    assert term.count == "tokens"
    expected = divergence(torch.Tensor.detach)
    torch.testing.assert_close(term.sum, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(gradient(term.sum), gradient(expected), rtol=1e-7, atol=1e-9)
    of_both = gradient(divergence(lambda logits: logits))  # what it would be if the last layer learnt too
    assert (gradient(term.sum) - of_both).norm() > 1e-3 * of_both.norm()


def head_of(model, states):
    """The model's own modules between its last hidden state and its logits."""
    hf = model.hf
    if hasattr(hf, "cls"):
        return hf.cls(states)
    if hasattr(hf, "vocab_transform"):
        return hf.vocab_projector(hf.vocab_layer_norm(hf.activation(hf.vocab_transform(states))))
    if hasattr(hf, "predictions"):
        return hf.predictions(states)
    if hasattr(hf, "decoder"):
        return hf.decoder(hf.head(states))
    return hf.lm_head(states)


def test_the_last_layer_is_not_pulled_down():
    model, batch = tiny.language_model("bert", 3, seed=1), tiny.batch(3, seed=2)
    ask(model, batch, layers=[1]).sum.backward()
    layers = model.hf.bert.encoder.layer
    assert bool(layers[0].attention.self.value.weight.grad.any())
    assert all(p.grad is None or not p.grad.any() for p in layers[2].parameters())


@pytest.mark.parametrize("layers", [[0], [3], [1, 5]])
def test_layers_that_cannot_learn_are_refused(layers):
    with pytest.raises(UserError, match="name layers from 1 to 2"):
        SelfLayers(kind="self_layers", layers=layers).build(Dims(3, 8, 10), None)
