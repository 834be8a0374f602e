"""What `validate` finds out about models and tokenizers that are here, without reading a weight."""

import json
import shutil
from pathlib import Path

import pytest

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
            ["objectives=[{kind: attention_mse, form: gram}]", "data.attention=document"],
            "objectives.0.form (attention_mse): gram",
        ),
        (["data.sequence_length=64"], "the student knows only 32 positions"),
        (["student.config={num_hidden_layers: 1, vocab_size: 100}", RANDOM], "the student's vocabulary only 100"),
        (["student.config={num_hidden_layers: 1, vocab_size: 400}", RANDOM], "they cannot be compared entry by entry"),
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
