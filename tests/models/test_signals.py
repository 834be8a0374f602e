"""The head runs on chosen rows only, and gives what the whole model gives."""

from dataclasses import replace

import pytest
import torch

from megadistill.core.errors import UserError
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
