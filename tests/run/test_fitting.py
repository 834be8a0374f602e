"""What `validate` finds out about models and tokenizers that are here, without reading a weight."""

import json
import shutil
from pathlib import Path

import pytest

from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.run.fitting import misfits
from megadistill.run.presets import presets
from megadistill.testing import tiny, workspace

RANDOM = "student.init={kind: random}"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A config whose teacher is nothing but its config.json: 2 layers of width 16, 2 heads, 300 entries."""
    path = workspace.make(tmp_path_factory.mktemp("bert"))
    (path.parent / "teacher" / "model.safetensors").unlink()
    return path


def told(path, *changes):
    problems, remarks = misfits(load(path, changes))
    return [str(problem) for problem in problems], remarks


def test_what_fits_is_not_complained_of(bert):
    assert told(bert) == ([], [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["objectives=[{kind: hidden_mse, layers: {3: 1}}]"],
            "objectives.0.layers (hidden_mse): there is no student layer 3",
        ),
        (
            ["objectives=[{kind: hidden_mse, layers: {1: 3}}]"],
            "objectives.0.layers (hidden_mse): there is no teacher layer 3",
        ),
        (["objectives=[{kind: hidden_mse, layer_weights: [1, 2]}]"], "2 weights for 1 pairs"),
        (["student.init.layers=[2]"], r"student.init.layers names layer(s) [2], and the teacher has 0 to 1"),
        (["student.init.layers=[0, 1]"], "student.init.layers has 2 entries for 1 student layers"),
        (["student.config={num_hidden_layers: 1, hidden_size: 32}"], "cannot be initialised from the teacher's layers"),
        (
            ["student.config={num_hidden_layers: 1, hidden_size: 32}", "student.init.width=slice"],
            "hidden_size: 32, the teacher's is 16",
        ),
        (["student.config={num_hidden_layers: 1, hidden_size: 8}", RANDOM], "the teacher has 16, the student 8"),
        (
            [
                "student.config={num_hidden_layers: 1, num_attention_heads: 4}",
                RANDOM,
                "objectives=[{kind: attention_mse}]",
            ],
            "objectives.0 (attention_mse): the teacher has 2 attention heads a layer, the student 4",
        ),
        (
            [
                "student.architecture=llama",
                "student.config={num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 4}",
                "student.config.num_key_value_heads=1",
                RANDOM,
                "data.targets={kind: clm}",
                "objectives=[{kind: attention_relation, relations: [qq, vv], heads: 8}]",
            ],
            "objectives.0.heads (attention_relation): 8 does not divide",
        ),
        (
            ["objectives=[{kind: attention_mse, form: gram}]", "data.attention=document"],
            "objectives.0.form (attention_mse): gram",
        ),
        (["data.sequence_length=64"], "the student knows only 32 positions"),
        (["student.config={num_hidden_layers: 1, vocab_size: 100}", RANDOM], "the student's vocabulary only 100"),
        (
            ["student.config={num_hidden_layers: 1, vocab_size: 400}", RANDOM],
            "vocabulary has 300 entries, the student's 400",
        ),
        (["student.config={num_hidden_layers: 1, hidden_sise: 8}"], "bert has no field hidden_sise"),
        (["student.freeze=['*wte*']"], "no parameter is named like '*wte*'"),
    ],
)
def test_what_only_sizes_tell_is_told_with_its_field(bert, changes, message):
    problems, _ = told(bert, *changes)
    assert any(message in problem for problem in problems), problems
    assert all("fix: " in problem for problem in problems)


def test_a_teacher_whose_vocabulary_is_padded_is_remarked_upon(bert, tmp_path):
    shutil.copytree(bert.parent / "teacher", tmp_path / "padded")
    config = json.loads((tmp_path / "padded" / "config.json").read_text())
    (tmp_path / "padded" / "config.json").write_text(json.dumps(config | {"vocab_size": 320}))
    given = [f"teacher.path={tmp_path / 'padded'}", RANDOM, "student.config={num_hidden_layers: 1, vocab_size: 300}"]
    problems, remarks = told(bert, *given)
    assert problems == []
    assert (
        "the teacher's vocabulary has 320 entries, the student's 300: its last 20 are padding, and ignored" in remarks
    )


def test_several_problems_are_told_at_once(bert):
    objectives = "objectives=[{kind: hidden_mse, layers: {3: 1}}, {kind: attention_mse, layers: {1: 5}}]"
    assert len(told(bert, objectives)[0]) == 2


def test_a_member_with_another_tokenizer_is_told(bert, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(bert.parent / "teacher", other)
    tokenizer = json.loads((bert.parent / "tokenizer" / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    first, second = list(vocabulary)[100:102]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    members = [{"kind": "online", "path": str(folder)} for folder in (bert.parent / "teacher", other)]
    problems, _ = told(bert, f"teacher={json.dumps({'kind': 'ensemble', 'members': members})}")
    assert any("2 tokens have another id" in problem for problem in problems)


def test_what_is_not_here_is_remarked_upon(bert):
    problems, remarks = told(bert, "teacher.path=google-bert/bert-base-uncased")
    assert problems == []
    assert any("not compared with the teacher google-bert/bert-base-uncased" in remark for remark in remarks)


@pytest.mark.parametrize("objective", ["{kind: kd_compat, original: pkd_mean}", "{kind: counterfactual}"])
def test_what_depends_on_the_split_is_remarked_upon(bert, objective):
    assert any("the split" in r or "is split" in r for r in told(bert, f"objectives=[{objective}]")[1])


@pytest.mark.parametrize("name", [preset.name for preset in presets()])
def test_every_preset_fits_as_far_as_can_be_seen_here(name, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    assert misfits(load(next(p.path for p in presets() if p.name == name)))[0] == []


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_students_of_every_family_have_sizes_without_weights(family):
    from megadistill.models.students.hf import HFStudent

    causal = family in tiny.CAUSAL
    student = HFStudent(kind="hf", architecture=family).empty(None, 61, causal, {"pad": 0})
    assert all(parameter.is_meta for parameter in student.parameters())
    assert student.dims.vocabulary == 61


def test_what_variants_are_made_from_is_looked_at_where_it_is_here(tmp_path):
    recipe = next(preset.path for preset in presets() if preset.name == "tasks/tinybert4_sst2_stage1")
    problems, remarks = told(recipe)
    assert problems == []
    assert "not looked at: task.augment.vectors data/glove.6B.300d.txt: it is not here yet" in remarks
    recipe = next(preset.path for preset in presets() if preset.name == "tasks/tang_bilstm_sst2")
    problems, remarks = told(recipe)
    assert problems == []
    assert any("averaged_perceptron_tagger_eng: it is not here yet" in remark for remark in remarks)
    problems, _ = told(recipe, f"task.augment.tagger={tmp_path}")
    assert [problem.splitlines()[0] for problem in problems] == [f"task.augment.tagger: {tmp_path} holds no tagger"]


TINY = "hidden_size: 16, num_attention_heads: 2, num_hidden_layers: 1, intermediate_size: 32"
ON_ATTENTION = "objectives=[{kind: attention_mse, layers: {1: 2}}, {kind: hard_ce}]"


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("gpt2"), causal=True)
    (path.parent / "teacher" / "model.safetensors").unlink()
    return path


@pytest.mark.parametrize("architecture", ["deberta", "mpnet", "roformer", "longformer", "big_bird"])
def test_attention_that_a_model_does_not_show_is_told_with_what_does(bert, architecture):
    student = f"student={{kind: hf, architecture: {architecture}, config: {{{TINY}}}}}"
    assert told(bert, student, "objectives=[{kind: hard_ce}]")[0] == []
    (problem,) = told(bert, student, ON_ATTENTION)[0]
    assert problem.startswith("objectives.0 (attention_mse): the student's ")
    assert "does not use transformers' attention interface" in problem
    assert "fix: use hidden_mse instead (states, which every model shows" in problem
    (problem,) = told(bert, student, "objectives=[{kind: hard_ce}]", "data.attention=document")[0]
    assert problem.startswith("data.attention: the student's ")
    assert "fix: set data.attention: row (documents of a row then see one another)" in problem


def test_scores_that_a_model_caps_are_told(gpt2):
    student = f"student={{kind: hf, architecture: gemma2, config: {{{TINY}}}}}"
    (problem,) = told(gpt2, student, ON_ATTENTION)[0]
    assert "caps its attention scores" in problem
    assert told(gpt2, student.replace("}}", ", attn_logit_softcapping: null}}"), ON_ATTENTION)[0] == []


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "modernbert"])
def test_the_gram_form_is_told_where_not_all_positions_see_one_another(bert, gpt2, architecture):
    path = bert if architecture == "modernbert" else gpt2
    sizes = "n_embd: 16, n_head: 2, n_layer: 1" if architecture == "gpt2" else TINY.replace("layers: 1", "layers: 2")
    student = f"student={{kind: hf, architecture: {architecture}, config: {{{sizes}}}}}"
    (problem,) = told(path, student, "objectives=[{kind: attention_mse, form: gram, layers: {1: 2}}]")[0]
    assert problem.startswith("objectives.0.form (attention_mse): gram sums over all pairs of positions")
    assert "fix: use form: pairs (it costs " in problem


def test_models_that_read_the_wrong_way_are_told_without_weights(bert, gpt2):
    problems, _ = told(bert, "data.targets={kind: clm}")
    assert [problem.partition(" (")[0] for problem in problems] == [
        "data.targets: clm, and the student",
        "data.targets: clm, and the teacher",
    ]
    assert "is_decoder: true" in problems[0]
    (problem,) = told(bert, "student.config.is_decoder=true")[0]
    assert problem.startswith("data.targets: mlm, and the student (BertForMaskedLM) sees only the tokens before")
    student = [f"student={{kind: hf, architecture: bert, config: {{{TINY}, max_position_embeddings: 32}}}}"]
    (problem,) = told(bert, *student, f"teacher.path={gpt2.parent / 'teacher'}")[0]
    assert problem.startswith("data.targets: mlm, and the teacher (GPT2LMHeadModel)")


def test_corpora_that_are_not_there_are_told_and_those_of_other_machines_remarked_upon(bert, tmp_path):
    new = f"data.dir={tmp_path}"
    corpus = f"data.corpora=[{{kind: text, files: [{bert.parent}/crpus.txt]}}]"
    (problem,) = told(bert, new, corpus)[0]
    assert problem.startswith("data.corpora.0.files: corpus text: no file matches")
    assert "corpus.txt" in problem
    problems, remarks = told(bert, new, "data.corpora=[{kind: text, files: [/nowhere/x/*.txt]}]")
    assert problems == []
    assert "not looked at: data.corpora.0.files /nowhere/x/*.txt: not on this machine" in remarks
    near = f"data.corpora=[{{kind: text, files: [{bert.parent}/techer/*.txt]}}]"
    assert any(f"not on this machine (there is {bert.parent / 'teacher'})" in r for r in told(bert, new, near)[1])


def test_members_of_other_vocabularies_are_told(bert, tmp_path):
    shutil.copytree(bert.parent / "teacher", tmp_path / "large")
    config = json.loads((tmp_path / "large" / "config.json").read_text())
    (tmp_path / "large" / "config.json").write_text(json.dumps(config | {"vocab_size": 9000}))
    members = [{"kind": "online", "path": str(path)} for path in (bert.parent / "teacher", tmp_path / "large")]
    problems, _ = told(bert, f"teacher={json.dumps({'kind': 'ensemble', 'members': members})}")
    assert [problem.splitlines()[0] for problem in problems] == ["teacher.members: vocabularies of 300, 9,000 entries"]


def test_a_tokenizer_that_is_none_or_lacks_what_targets_need_is_told_before_prepare(bert, tmp_path):
    (problem,) = told(bert, f"data.tokenizer={tmp_path}")[0]
    assert problem.startswith(f"data.tokenizer: no tokenizer in {tmp_path}")
    tokenizer = json.loads((bert.parent / "tokenizer" / "tokenizer.json").read_text().replace("[MASK]", "[MUSK]"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (problem,) = told(bert, f"data.tokenizer={tmp_path}")[0]
    assert problem.startswith("data.targets: mlm needs a tokenizer with a mask token")


def test_shards_of_other_settings_are_told(bert):
    made = f"data.dir={bert.parent / 'made'}"
    prepare(load(bert, [made]).text, lambda line: None, workers=1)
    assert told(bert, made) == ([], [])
    problems, (remark,) = told(bert, made, "data.packing=split")
    assert problems == []
    assert 'prepared otherwise, and `prepare` makes it anew: data.packing was "concat", and is "split"' in remark
