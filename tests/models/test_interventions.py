"""Hidden states replaced in a forward pass: interchange interventions against the formulas that define them."""

import pytest
import torch

from megadistill.testing import tiny


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_a_row_that_gets_all_states_of_another_answers_as_that_one(name):
    model = tiny.language_model(name, 3, seed=3).double().eval()
    batch = tiny.batch(4, ragged=False)
    base = model.signals(batch, frozenset({1, -1}))
    other = base.hidden[1].roll(1, 0)
    swapped = base.again({1: other}, batch.mask)
    torch.testing.assert_close(swapped.hidden[-1], base.hidden[-1].roll(1, 0), rtol=1e-9, atol=1e-9)
    nothing = base.again({1: other}, torch.zeros_like(batch.mask))
    torch.testing.assert_close(nothing.hidden[-1], base.hidden[-1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_chosen_positions_alone_are_replaced_and_the_hooks_are_gone(name):
    model = tiny.language_model(name, 3, seed=3).double().eval()
    batch = tiny.batch(4, ragged=False)
    base = model.signals(batch, frozenset({2, -1}))
    where = torch.zeros_like(batch.mask)
    where[:, 5:7] = True
    again = base.again({2: torch.full_like(base.hidden[2], 0.5)}, where)
    assert (again.hidden[2][where] == 0.5).all()
    assert torch.equal(again.hidden[2][~where], base.hidden[2][~where])
    assert not torch.allclose(again.hidden[-1][where], base.hidden[-1][where])
    if name in tiny.CAUSAL:
        assert torch.equal(again.hidden[-1][:, :5], base.hidden[-1][:, :5])
    assert torch.equal(model.signals(batch, frozenset({-1})).hidden[-1], base.hidden[-1])


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_what_lies_below_is_not_run_again_and_makes_no_difference(name):
    """Two exchanged layers, with the lower one's own states known or not: one answer and one gradient."""
    model = tiny.language_model(name, 4, seed=3).double().eval()
    batch = tiny.batch(3, seed=2)
    where = batch.mask & batch.mask.roll(1, 0)
    found = []
    for hidden in ({2, 3, -1}, {3, -1}):
        base = model.signals(batch, frozenset({2, 3, -1}))
        values = {layer: base.hidden[layer].roll(1, 0) for layer in (2, 3)}
        state = model.signals(batch, frozenset(hidden)).again(values, where).hidden[-1]
        gradient = torch.autograd.grad(state[batch.mask].square().sum(), list(model.parameters()), allow_unused=True)
        found.append([state.detach(), *(g for g in gradient if g is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_the_gradient_flows_through_what_was_put_in():
    model = tiny.language_model("bert", 2, seed=3).double().eval()
    batch = tiny.batch(2, ragged=False)
    base = model.signals(batch, frozenset({1, -1}))
    given = base.hidden[1].detach().roll(1, 0).requires_grad_()
    base.again({1: given}, batch.mask).hidden[-1].square().sum().backward()
    assert given.grad.abs().min() > 0


def test_a_frozen_model_answers_without_a_graph():
    model = tiny.language_model("bert", 2).requires_grad_(False)
    batch = tiny.batch(2)
    base = model.signals(batch, frozenset({1}))
    values = base.hidden[1].clone().requires_grad_()
    assert not base.again({1: values}, batch.mask).hidden[1].requires_grad
