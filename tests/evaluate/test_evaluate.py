"""Scores of a finished run: which text, in which rows, on which device."""

import json

import pytest
import torch
import yaml

from megadistill.core.errors import UserError
from megadistill.data.prepare import prepare
from megadistill.evaluate import scores
from megadistill.evaluate import wikitext as module
from megadistill.evaluate.ask import shown
from megadistill.evaluate.heldout import heldout
from megadistill.evaluate.wikitext import wikitext
from megadistill.models.loading import load_pretrained, save_pretrained
from megadistill.run.config import load
from megadistill.teachers.online import OnlineSource
from megadistill.testing import tiny, workspace


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"))
    loaded = load(path)
    prepare(loaded.data, lambda line: None)
    return loaded


@pytest.fixture(scope="module")
def model(config):
    return OnlineSource("teacher", load_pretrained(config.teacher.path))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "test.txt").write_text("\n\n".join(workspace.text()[600:620]), encoding="utf-8")
    return tmp_path


def changed(config, **values):
    return config.data.model_validate(config.data.model_dump() | values)


def test_smoothed_masking_is_scored_as_if_it_were_even(config, model, folder):
    smooth = changed(config, targets={"kind": "mlm", "smoothing": 0.7})
    assert wikitext(folder, smooth, model, None) == wikitext(folder, config.data, model, None)


@pytest.mark.parametrize("packing", ["concat", "split"])
def test_wikitext_is_packed_as_the_runs_own_text(config, model, folder, packing, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "score", lambda model, batches: seen.extend(batches) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        wikitext(folder, changed(config, packing=packing), model, None)
    framed = sum(int((batch.ids[:, 0] == 2).sum()) for batch in seen)  # rows that open with [CLS]
    assert framed == (1 if packing == "concat" else sum(len(batch.ids) for batch in seen))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b" \n", "is empty"), (b"caf\xe9", "UTF-8"), (b"short", "too short"), (None, "no WikiText")],
)
def test_what_is_wrong_with_a_wikitext_file(config, model, tmp_path, content, message):
    if content is not None:
        (tmp_path / "wiki.test.raw").write_bytes(content)
    with pytest.raises(UserError, match=message):
        wikitext(tmp_path, changed(config, packing="split"), model, None)


def test_held_out_rows_can_be_limited(config, model):
    everything, some = heldout(config, model, None), heldout(config, model, None, rows=7)
    assert len(some["rows"]["nll"]) == 7 < len(everything["rows"]["nll"])
    assert some["rows"]["targets"] == everything["rows"]["targets"][:7]


@pytest.mark.parametrize(("there", "wish", "expected"), [(True, "", "cuda"), (True, "cpu", "cpu"), (False, "", "cpu")])
def test_scores_are_made_on_the_gpu_unless_told_otherwise(there, wish, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setenv("DS_ACCELERATOR", wish)
    assert scores.best_device().type == expected


@pytest.fixture
def run_with(config, tmp_path, monkeypatch):
    """teacher -> a run's folder; its student is the workspace's teacher."""
    monkeypatch.setattr(scores, "trained", lambda directory: type("Found", (), {"path": directory.path, "step": 1}))

    def make(name, **teacher):
        run = tmp_path / name
        run.mkdir()
        tree = config.model_dump(mode="json") | {"teacher": teacher, "objectives": [{"kind": "soft_ce"}]}
        tree["data"]["targets"]["maskings"] = 1  # answers can be kept
        (run / "config.resolved.yaml").write_text(yaml.safe_dump(tree))
        (run / "student").symlink_to(config.teacher.path)
        return run

    return make


@pytest.mark.parametrize("placement", ["replicated", "sharded", "offloaded", "own_ranks"])
def test_student_and_teacher_are_on_that_device(config, run_with, monkeypatch, placement):
    seen = []

    def devices(config, student, teacher, rows):
        seen.extend(next(source.models[0].parameters()).device.type for source in (student, teacher))
        return {"rows": {}}

    monkeypatch.setattr(scores, "best_device", lambda: torch.device("meta"))
    monkeypatch.setattr(scores, "heldout", devices)
    scores.evaluate(run_with("run", kind="online", path=config.teacher.path, placement=placement), ["heldout"])
    assert seen == ["meta", "meta"]


def test_an_ensemble_is_scored_as_the_one_teacher_that_it_is(config, run_with, folder, tmp_path, monkeypatch):
    """Of two members the second alone weighs something: its scores are the ensemble's."""
    monkeypatch.setattr(scores, "best_device", lambda: torch.device("cpu"))
    sizes = {"vocab_size": workspace.VOCABULARY, "max_position_embeddings": workspace.LENGTH}
    model = tiny.language_model("bert", 1, seed=5, initializer_range=0.3, **sizes)
    save_pretrained(model, tmp_path / "other", dict(model.named_parameters()))
    other = {"kind": "online", "path": str(tmp_path / "other")}
    both = {"kind": "ensemble", "members": [{"kind": "online", "path": config.teacher.path}, other], "weights": [0, 1]}
    kept = {"kind": "cached", "dir": str(tmp_path / "answers"), "of": both}
    found = {}
    for name, teacher in (("alone", other), ("both", both), ("kept", kept)):
        found[name] = scores.evaluate(run_with(name, **teacher), ["heldout", "wikitext"], folder, rows=7)
    alone = found["alone"]
    for name in ("both", "kept"):
        for task, key in (("heldout", "teacher_loss"), ("heldout", "kl"), ("wikitext", "teacher_loss")):
            assert found[name][task][key] == pytest.approx(alone[task][key], rel=1e-5)
        for key in ("agreement_top1", "teacher_calibration"):
            assert found[name]["heldout"][key] == alone["heldout"][key]
        numbers = alone["heldout"]["num_parameters"], alone["heldout"]["teacher_num_parameters"]
        assert found[name]["heldout"]["teacher_num_parameters"] == sum(numbers)
    assert alone["heldout"]["kl"] > 0.1


def test_numbers_are_printed_as_json_with_a_list_on_one_line():
    result = {"heldout": {"loss": 1.5, "kl": [0.25, 1.0], "none": [], "texts": ["[ 1 ]"], "deep": [{"a": [1, 2]}]}}
    text = shown(result)
    assert json.loads(text) == result
    assert '"kl": [0.25, 1.0],\n' in text
    assert '"a": [1, 2]\n' in text
