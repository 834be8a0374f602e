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
from megadistill.models.loading import load_pretrained
from megadistill.run.config import load
from megadistill.testing import workspace


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"))
    loaded = load(path)
    prepare(loaded.data, lambda line: None)
    return loaded


@pytest.fixture(scope="module")
def model(config):
    return load_pretrained(config.teacher.path)


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


@pytest.mark.parametrize("placement", ["replicated", "sharded", "offloaded", "own_ranks"])
def test_student_and_teacher_are_on_that_device(config, tmp_path, monkeypatch, placement):
    run = tmp_path / "run"
    run.mkdir()
    tree = config.model_dump(mode="json")
    tree["teacher"]["placement"] = placement
    (run / "config.resolved.yaml").write_text(yaml.safe_dump(tree))
    (run / "student").symlink_to(config.teacher.path)
    seen = []

    def devices(config, student, teacher, rows):
        seen.extend(next(model.parameters()).device.type for model in (student, teacher))
        return {"rows": {}}

    monkeypatch.setattr(scores, "trained", lambda directory: type("Found", (), {"path": directory.path, "step": 1}))
    monkeypatch.setattr(scores, "best_device", lambda: torch.device("meta"))
    monkeypatch.setattr(scores, "heldout", devices)
    scores.evaluate(run, ["heldout"])
    assert seen == ["meta", "meta"]


def test_numbers_are_printed_as_json_with_a_list_on_one_line():
    result = {"heldout": {"loss": 1.5, "kl": [0.25, 1.0], "none": [], "texts": ["[ 1 ]"], "deep": [{"a": [1, 2]}]}}
    text = shown(result)
    assert json.loads(text) == result
    assert '"kl": [0.25, 1.0],\n' in text
    assert '"a": [1, 2]\n' in text
