"""What does not fit together is refused while a run is built."""

import json
import shutil

import pytest
import torch

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.data.prepare import prepare
from megadistill.models.signals import LanguageModel
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


SMALL = {
    "bert": "{num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, intermediate_size: 32}",
    "gpt2": "{n_layer: 1, n_embd: 16, n_head: 2}",
}


def as_architecture(architecture):
    sizes = SMALL[architecture]
    return [f"student.architecture={architecture}", f"student.config={sizes}", "student.init={kind: random}"]


HARD = "objectives=[{kind: hard_ce}]"


def test_models_of_the_targets_direction_are_taken(bert, gpt2):
    built(bert)
    assert built(gpt2).student.training


def test_models_of_a_run_on_pairs_are_told_which_text_is_which(bert, tmp_path):
    pairs = ["data.packing=pairs", f"data.dir={tmp_path}"]
    prepare(load(bert, pairs).data, lambda line: None)
    member = f"{{kind: hf, architecture: bert, config: {SMALL['bert']}}}"
    parts = built(bert, *pairs, f"objectives=[{{kind: soft_ce}}, {{kind: mutual, member: {member}}}]")
    member = next(m for loss in parts.losses for m in getattr(loss, "modules", list)() if isinstance(m, LanguageModel))
    batch = parts.stream.take(0)[0]
    for model in (parts.student, *parts.teacher.models, member):
        types = model.hf.bert.embeddings.token_type_embeddings.weight.requires_grad_()
        states = model.signals(batch, frozenset({-1})).hidden[-1]
        (gradient,) = torch.autograd.grad(states[batch.segments == 2].square().sum(), types)
        assert bool((gradient.abs().sum(1) > 0).all())
    assert not built(bert).student.typed


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


def test_a_student_starts_from_what_a_16_bit_teacher_is_rounded_from(bert):
    exact, rounded = (built(bert, f"teacher.dtype={dtype}") for dtype in ("float32", "bfloat16"))
    assert {p.dtype for p in rounded.teacher.model.parameters()} == {torch.bfloat16}
    for ours, theirs in zip(rounded.student.parameters(), exact.student.parameters(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


def test_a_bert_decoder_may_learn_next_tokens(bert):
    built(bert, "data.targets={kind: clm}", "student.config.is_decoder=true", HARD)


def test_a_causal_model_is_refused_for_masked_tokens(bert, gpt2):
    with pytest.raises(UserError, match=r"the student \(BertForMaskedLM\) sees only the tokens before"):
        built(bert, "student.config.is_decoder=true")
    with pytest.raises(UserError, match=r"the teacher \(GPT2LMHeadModel\) sees only the tokens before"):
        built(bert, f"teacher.path={gpt2.parent / 'teacher'}", *as_architecture("bert"))


def with_tokenizer(path, folder):
    """The teacher's folder with the data's tokenizer in it."""
    shutil.copytree(path.parent / "teacher", folder)
    shutil.copy(path.parent / "tokenizer" / "tokenizer.json", folder)
    return folder


def test_the_teachers_own_tokenizer_is_taken_from_any_kind_of_file(bert, tmp_path, caplog):
    json_folder, text_folder = with_tokenizer(bert, tmp_path / "json"), tmp_path / "text"
    built(bert, f"teacher.path={json_folder}")
    vocabulary = json.loads((json_folder / "tokenizer.json").read_text())["model"]["vocab"]
    shutil.copytree(bert.parent / "teacher", text_folder)
    (text_folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.get)) + "\n")
    built(bert, f"teacher.path={text_folder}")
    assert "not checked" not in caplog.text


def test_a_teacher_of_another_tokenizer_of_the_same_size_is_refused(bert, tmp_path):
    folder = with_tokenizer(bert, tmp_path / "other")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[100:102]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="another tokenizer") as caught:
        built(bert, f"teacher.path={folder}")
    assert "2 tokens have another id" in str(caught.value)
    assert f"fix: set data.tokenizer to {folder} and run `megadistill prepare`" in str(caught.value)
    student = f"student={{kind: hf, init: {{kind: folder, path: {folder}}}}}"
    with pytest.raises(UserError, match="the student was trained with another tokenizer"):
        built(bert, student)


def test_another_token_in_a_special_role_is_refused(bert, tmp_path):
    folder = with_tokenizer(bert, tmp_path / "other")
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "[SEP]"}))
    with pytest.raises(UserError, match="special tokens"):
        built(bert, f"teacher.path={folder}")


def test_a_teacher_without_tokenizer_is_said_to_be_unchecked(bert, caplog):
    built(bert)
    assert "not checked that the teacher was trained with" in caplog.text


def test_a_student_from_scratch_knows_its_tokenizers_special_ids(gpt2):
    config = built(gpt2, *as_architecture("gpt2")).student.hf.config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 2, 3)
    config = built(gpt2, *as_architecture("gpt2"), "student.config.eos_token_id=7").student.hf.config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 2, 7)


def test_roberta_counts_positions_from_its_padding_id(bert):
    sizes = "{num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, intermediate_size: 32}"
    student = ["student.architecture=roberta", f"student.config={sizes}", "student.init={kind: random}"]
    built(bert, *student, "student.config.max_position_embeddings=33")
    with pytest.raises(UserError, match="the student knows only 31"):
        built(bert, *student, "student.config.max_position_embeddings=32")
