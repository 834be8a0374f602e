"""A language model that was trained on pairs is exported with types: its tokenizer gives them, and ONNX takes them."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForMaskedLM, AutoTokenizer

from megadistill.data.prepare import prepare
from megadistill.export import hf, onnx
from megadistill.run.config import dump, load
from megadistill.run.directory import RunDirectory
from megadistill.testing import workspace

TEXTS = ("the first of two texts", "and the second one")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`run(packing)`: a run's directory, and its teacher in the place of a trained student."""
    folder = tmp_path_factory.mktemp("run")
    path = workspace.make(folder)

    def make(packing):
        settings = [f"data.packing={packing}", f"data.dir={folder / packing}", "data.corpora.0.max_documents=60"]
        config = load(path, settings)
        prepare(config.data, lambda line: None)
        directory = RunDirectory(folder / f"run-{packing}")
        directory.path.mkdir()
        directory.resolved_config.write_text(yaml.safe_dump(dump(config)))
        shutil.copytree(folder / "teacher", directory.path / "student")
        return directory.path

    return make


def texts(folder):
    return AutoTokenizer.from_pretrained(folder)(*TEXTS, return_tensors="pt")


@pytest.mark.parametrize(("packing", "typed"), [("pairs", True), ("concat", False)])
def test_types_are_exported_where_the_model_was_trained_with_them(run, monkeypatch, packing, typed):
    path = run(packing)
    for module in (hf, onnx):
        monkeypatch.setattr(module, "trained", lambda directory: SimpleNamespace(path=directory.path, step=1))
    given = texts(hf.export(path))
    assert ("token_type_ids" in given) == typed
    pytest.importorskip("onnxruntime")
    import onnxruntime

    folder = onnx.export(path, "onnx")
    assert texts(folder).keys() == given.keys()
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert {one.name for one in session.get_inputs()} >= set(given)
    types = given.setdefault("token_type_ids", torch.zeros_like(given["input_ids"]))
    assert bool(types.any()) == typed
    answer = session.run(None, {one.name: given[one.name].numpy() for one in session.get_inputs()})[0]
    model = AutoModelForMaskedLM.from_pretrained(path / "student").eval()
    with torch.no_grad():
        expected = model(**given).logits.numpy()
    assert np.abs(answer - expected).max() < 1e-4
