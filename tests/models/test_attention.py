"""Attention confined to documents, and what is captured of it, in every family."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from megadistill.core.errors import UserError
from megadistill.core.types import IGNORE, Batch
from megadistill.models.attention import positions
from megadistill.models.signals import LanguageModel
from megadistill.objectives.attention_relation import AttentionRelation
from megadistill.testing import tiny

EMPTY = frozenset()
DOCUMENTS = [[5, 4, 3], [7, 2], [12]]


def family(name, **config):
    return tiny.language_model(name, 2, seed=3, **config).double().eval()


def alone(batch):
    """(row, positions, batch of one row) of every document of a packed batch."""
    for row in range(len(batch.ids)):
        for number in range(1, int(batch.segments[row].max()) + 1):
            here = (batch.segments[row] == number).nonzero().squeeze(1)
            ids = batch.ids[row, here][None]
            one = torch.ones_like(ids)
            yield row, here, Batch(ids, one.bool(), one, torch.full_like(ids, IGNORE), torch.zeros(1).long())


def hidden(model, batch):
    return model.signals(batch, frozenset({0, 1, -1})).hidden


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_documents_of_a_packed_row_get_the_states_that_they_have_alone(name):
    model, batch = family(name), tiny.packed(DOCUMENTS)
    model.attends = "document"
    packed = hidden(model, batch)
    model.attends = "row"
    for row, here, one in alone(batch):
        for layer, states in hidden(model, one).items():
            torch.testing.assert_close(packed[layer][row, here], states[0], rtol=1e-9, atol=1e-9)
    assert all(bool(states.isfinite().all()) for states in packed.values())


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_in_a_row_they_see_each_other(name):
    """The test above would notice attention that is not confined."""
    model, batch = family(name), tiny.packed(DOCUMENTS)
    whole = hidden(model, batch)[-1]
    changed = [
        not torch.allclose(whole[row, here], hidden(model, one)[-1][0])
        for row, here, one in alone(batch)
        if int(here[0]) > 0
    ]
    assert all(changed)


def test_confined_attention_is_what_the_gradient_sees():
    model, batch = family("bert"), tiny.packed([[6, 6]])
    model.attends = "document"
    embeddings = model.hf.get_input_embeddings()
    kept = []
    handle = embeddings.register_forward_hook(lambda module, inputs, output: kept.append(output) or output)
    states = model.signals(batch, frozenset({-1})).hidden[-1]
    handle.remove()
    (gradient,) = torch.autograd.grad(states[0, :6].square().sum(), kept[0])
    assert gradient[0, :6].abs().min() > 0
    assert torch.equal(gradient[0, 6:], torch.zeros_like(gradient[0, 6:]))


def test_positions_restart_with_each_document():
    segments = torch.tensor([[1, 1, 1, 2, 2, 3, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1]])
    assert positions(segments).tolist() == [[0, 1, 2, 0, 1, 0, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("attends", ["row", "document"])
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_captured_queries_keys_and_values_give_the_attention_that_the_model_computes(name, attends):
    """softmax(q k scale) v over the visible keys is what goes into the layer's output projection."""
    model, batch = family(name), tiny.packed(DOCUMENTS) if attends == "document" else tiny.batch(4, seed=1)
    model.attends = attends
    outputs = []

    def note(module, inputs):
        outputs.append(inputs[0])

    projections = [
        module
        for path, module in model.hf.base_model.named_modules()
        if path.endswith(("attention.output.dense", "out_lin", "attn.c_proj", "o_proj", "attention.dense", "attn.Wo"))
    ]
    handles = [module.register_forward_pre_hook(note) for module in projections]
    captured = model.signals(batch, EMPTY, frozenset({1, -1})).attention
    for handle in handles:
        handle.remove()
    assert set(captured) == {1, -1}
    assert len(outputs) == 2
    for one, output in zip((captured[1], captured[-1]), outputs, strict=True):
        repeats = one.query.shape[1] // one.key.shape[1]
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (one.key, one.value))
        scores = (one.scale * one.query @ key.transpose(-1, -2)).masked_fill(~one.visible, -torch.inf)
        ours = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
        torch.testing.assert_close(ours[batch.mask], output.view_as(ours)[batch.mask], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_capturing_changes_nothing_and_leaves_nothing_behind(name):
    model, batch = family(name), tiny.batch(4, seed=1)
    before, implementation = hidden(model, batch)[-1], model.hf.config._attn_implementation
    captured = model.signals(batch, frozenset({-1}), frozenset({1})).hidden[-1]
    torch.testing.assert_close(captured[batch.mask], before[batch.mask], rtol=1e-12, atol=1e-12)
    assert model.hf.config._attn_implementation == implementation
    assert torch.equal(hidden(model, batch)[-1], before)


def test_recomputed_activations_have_the_same_gradient():
    batch = tiny.batch(4, seed=1)
    gradients = []
    for checkpointing in (False, True):
        model = family("bert").train()
        if checkpointing:
            model.hf.gradient_checkpointing_enable({"use_reentrant": False})
        signals = model.signals(batch, frozenset({-1}), frozenset({2}))
        (signals.attention[2].query.square().sum() + signals.hidden[-1].square().sum()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-12, atol=1e-12)


def test_a_model_with_an_attention_of_its_own_is_refused_with_what_to_do(monkeypatch):
    model, batch = family("gpt2"), tiny.batch(2)
    monkeypatch.setattr(type(model.hf.base_model.h[0].attn), "forward", lambda self, x, **given: (x, None))
    with pytest.raises(UserError, match="does not use transformers' attention interface") as caught:
        model.signals(batch, EMPTY, frozenset({1}))
    assert "use hidden_mse instead" in caught.value.fix


@pytest.mark.parametrize("name", ["mpnet", "megatron-bert"])
def test_a_model_that_only_makes_masks_as_others_do_is_refused_documents(name):
    """It would add the mask to its scores, as 0 and 1."""
    sizes = {"vocab_size": tiny.VOCABULARY, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = AutoConfig.for_model(name, **sizes, intermediate_size=32)
    model = LanguageModel(AutoModelForMaskedLM.from_config(config)).eval()
    hidden(model, tiny.packed(DOCUMENTS))
    model.attends = "document"
    with pytest.raises(UserError, match="does not use transformers' attention interface") as caught:
        hidden(model, tiny.packed(DOCUMENTS))
    assert caught.value.fix.startswith("set data.attention: row")


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_sizes_say_whether_all_positions_see_one_another(name):
    model = family(name)
    assert model.dims.full_attention == (name not in tiny.CAUSAL | {"modernbert"})
    model.attends = "document"
    assert not model.dims.full_attention
    assert model.dims.heads == 2


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_the_widths_that_a_config_tells_are_those_of_queries_keys_and_values(name):
    decoder = name in tiny.CAUSAL and name != "gpt2"
    sizes = {"hidden_size": 12, "num_attention_heads": 6, "num_key_value_heads": 2} if decoder else {}
    model, batch = family(name, **sizes), tiny.batch(3)
    seen = model.signals(batch, EMPTY, frozenset({-1})).attention[-1]
    query, key, value = (side.shape[1] * side.shape[3] for side in (seen.query, seen.key, seen.value))
    assert (model.dims.queries, model.dims.keys, model.dims.keys) == (query, key, value)
    assert (query == 3 * key) == decoder


def test_relation_heads_must_divide_only_what_their_relations_are_made_of():
    sizes = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}
    model, batch = family("qwen3", **sizes), tiny.batch(3)  # queries of 24 values, keys and values of 8
    signals = model.signals(batch, EMPTY, frozenset({-1}))

    def loss(heads, relations, dims=model.dims):
        objective = AttentionRelation(kind="attention_relation", relations=relations, heads=heads)
        return objective.build(dims, dims)(signals, signals, batch).sum.item()

    for heads, relations in ((12, ["qk", "qq"]), (4, ["kk", "vv"]), (8, ["qk", "qq", "kk", "vv"])):
        assert loss(heads, relations) == pytest.approx(0, abs=1e-9)
    for relation in ("kk", "vv"):
        with pytest.raises(UserError, match="heads: 12 does not divide what relations are made of"):
            loss(12, ["qq", relation])
        with pytest.raises(UserError, match="heads: 12 does not divide 2 heads of 4"):
            loss(12, ["qq", relation], replace(model.dims, queries=None, keys=None))
