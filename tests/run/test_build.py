"""What does not fit together is refused while a run is built."""

import pytest

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.data.prepare import prepare
from megadistill.run.build import build
from megadistill.run.config import load
from megadistill.testing import tiny, workspace


def made(folder, causal):
    path = workspace.make(folder, causal)
    prepare(load(path).data, lambda line: None)
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return made(tmp_path_factory.mktemp("bert"), causal=False)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return made(tmp_path_factory.mktemp("gpt2"), causal=True)


def built(path, *assignments):
    return build(load(path, assignments), World(0, 1), tiny.CPU)


def as_architecture(architecture):
    sizes = {
        "bert": "{num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, intermediate_size: 32}",
        "gpt2": "{n_layer: 1, n_embd: 16, n_head: 2}",
    }[architecture]
    return [f"student.architecture={architecture}", f"student.config={sizes}", "student.init={kind: random}"]


HARD = "objectives=[{kind: hard_ce}]"


def test_models_of_the_targets_direction_are_taken(bert, gpt2):
    built(bert)
    assert built(gpt2).student.training


def test_a_student_that_sees_its_answers_is_refused(bert, gpt2):
    with pytest.raises(UserError, match=r"the student \(BertLMHeadModel\) sees the tokens that it has to predict"):
        built(bert, "data.targets={kind: clm}")
    with pytest.raises(UserError, match="the student"):
        built(gpt2, *as_architecture("bert"), HARD)


def test_a_teacher_that_sees_the_answers_is_refused_where_it_teaches(bert, gpt2):
    other = f"teacher.path={bert.parent / 'teacher'}"
    with pytest.raises(UserError, match=r"the teacher \(BertForMaskedLM\) sees"):
        built(gpt2, other, *as_architecture("gpt2"))
    built(gpt2, other, *as_architecture("gpt2"), HARD)


def test_a_bert_decoder_may_learn_next_tokens(bert):
    built(bert, "data.targets={kind: clm}", "student.config.is_decoder=true", HARD)


def test_a_causal_model_is_refused_for_masked_tokens(bert, gpt2):
    with pytest.raises(UserError, match=r"the student \(BertForMaskedLM\) sees only the tokens before"):
        built(bert, "student.config.is_decoder=true")
    with pytest.raises(UserError, match=r"the teacher \(GPT2LMHeadModel\) sees only the tokens before"):
        built(bert, f"teacher.path={gpt2.parent / 'teacher'}", *as_architecture("bert"))
