"""The head runs on chosen rows only, and gives what the whole model gives."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from megadistill.core.errors import UserError
from megadistill.models.interventions import layer_modules
from megadistill.models.likeness import likeness
from megadistill.models.signals import LanguageModel
from megadistill.objectives.self_layers import SelfLayers
from megadistill.teachers.apart import FarModel
from megadistill.testing import tiny


def logits(hidden, weight, bias):
    product = hidden @ weight.T
    return product if bias is None else product + bias


@pytest.mark.parametrize("architecture", tiny.FAMILIES)
def test_rows_of_the_head_equal_those_of_the_models_own_logits(architecture):
    model = tiny.language_model(architecture, 2).eval()
    batch = tiny.batch(3)
    rows = torch.tensor([0, 5, 13, 30])
    ours = model.signals(batch, frozenset()).head(logits, rows)
    whole = model.hf(input_ids=batch.ids, attention_mask=batch.mask.long()).logits.flatten(0, 1)
    torch.testing.assert_close(ours, whole[rows])


def test_hidden_states_are_numbered_from_the_embeddings():
    model = tiny.language_model("bert", 2).eval()
    batch = tiny.batch(3)
    hidden = model.signals(batch, frozenset({0, 2, -1})).hidden
    whole = model.hf.bert(batch.ids, batch.mask.long(), output_hidden_states=True).hidden_states
    assert set(hidden) == {0, 2, -1}
    assert torch.equal(hidden[0], whole[0])
    assert torch.equal(hidden[2], whole[2])
    assert torch.equal(hidden[-1], whole[2])


def test_padding_changes_nothing_at_the_other_positions():
    model = tiny.language_model("bert", 2).eval()
    batch = tiny.batch(3)
    scrambled = batch.ids.masked_fill(~batch.mask, 9)
    ours = model.signals(batch, frozenset({-1})).hidden[-1]
    theirs = model.signals(replace(batch, ids=scrambled), frozenset({-1})).hidden[-1]
    torch.testing.assert_close(ours[batch.mask], theirs[batch.mask])


@pytest.mark.parametrize(("architecture", "knows"), [("bert", True), ("albert", True), ("roberta", False)])
def test_only_of_a_pair_a_language_model_is_told_the_texts(architecture, knows):
    model, batch = tiny.language_model(architecture, 1).eval(), tiny.packed([[5, 4, 3], [6, 2]])
    types, states = (batch.segments - 1).clamp(min=0).clamp(max=1), {}
    batch = replace(batch, segments=torch.where(batch.mask, types + 1, 0))
    for attends in ("row", "pair"):
        model.attends = attends
        assert model.typed == (knows and attends == "pair")
        states[attends] = model.signals(batch, frozenset({-1})).hidden[-1]
    given = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
    assert torch.equal(states["row"], model.hf.base_model(**given).last_hidden_state)
    given |= {"token_type_ids": types} if knows else {}
    assert torch.equal(states["pair"], model.hf.base_model(**given).last_hidden_state)


def test_a_head_that_is_not_known_is_refused_before_it_misleads():
    model = tiny.language_model("bert", 2)
    model.check_head()
    model.hf.config.model_type = "unknown"  # its transform is then left out
    with pytest.raises(UserError, match="computes its logits in a way that megadistill does not know"):
        model.check_head()


SIZES = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
OTHERS = {
    "gpt_neox": {**SIZES, "intermediate_size": 32},
    "opt": {**SIZES, "word_embed_proj_dim": 16, "ffn_dim": 32},
    "phi": {**SIZES, "intermediate_size": 32},
    "mpt": {"d_model": 16, "n_layers": 3, "n_heads": 2, "max_seq_len": tiny.LENGTH},
    "bert": {**SIZES, "intermediate_size": 32, "is_decoder": True},
    "ctrl": {"n_embd": 16, "dff": 32, "n_layer": 3, "n_head": 2, "n_positions": tiny.LENGTH},
}
"""Causal models besides the families of `tiny`; the last one's last norm has a name that is not known."""


@torch.no_grad()
def made(architecture):
    """With norms that do something."""
    if architecture in tiny.FAMILIES:
        model = tiny.language_model(architecture, 3, seed=1)
    else:
        config = AutoConfig.for_model(architecture, vocab_size=tiny.VOCABULARY, **OTHERS[architecture])
        model = LanguageModel(AutoModelForCausalLM.from_config(config))
    for parameter in model.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return model.eval()


@pytest.mark.parametrize("architecture", [*tiny.FAMILIES, *list(OTHERS)[:-1]])
@torch.no_grad()
def test_the_head_reads_inner_layers_as_it_reads_the_last(architecture):
    """What the last layer gives, taken for an inner layer's, gives the model's own logits."""
    model, batch = made(architecture), tiny.batch(3)
    given = []
    hook = layer_modules(model.hf)[-1].register_forward_hook(
        lambda _, __, output: given.append(output[0] if isinstance(output, tuple) else output)
    )
    last = model.signals(batch, frozenset({-1})).hidden[-1]
    hook.remove()
    head = model.head_on(batch, last, {1: given[-1]})
    assert model.dims.inner_head
    torch.testing.assert_close(head(logits, batch.attended, (1,)), head(logits, batch.attended))
    far = FarModel(model.hf, None, tiny.CPU)
    far.let_go()
    torch.testing.assert_close(far.head_on(batch, last, {1: given[-1]})(logits, batch.attended, (1,)),
                               head(logits, batch.attended))  # fmt: skip


def test_inner_layers_are_not_read_where_the_last_norm_is_not_known():
    model, batch = made("ctrl"), tiny.batch(3)
    model.check_head()
    assert not model.dims.inner_head
    with pytest.raises(UserError, match="layers: the student's head cannot be asked about its inner layers"):
        SelfLayers(kind="self_layers", layers=[1]).build(model.dims, None)
    with pytest.raises(UserError, match="has no last norm that megadistill knows"):
        model.signals(batch, frozenset({1})).head(logits, batch.attended, (1,))
    found = likeness(model, model, batch)
    assert found["agreement"] == {3: 1}
    assert set(found["cosine"]) == {0, 1, 2, 3}
