"""What ONNX answers is compared with torch, so that an export that is wrong never stands there as one."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megadistill.export import check, onnx
from megadistill.models.heads import TaskHead
from megadistill.tasks.glue import GlueTask
from megadistill.tasks.rows import TaskRows
from megadistill.testing import processes, task_files, tiny

pytest.importorskip("onnxruntime")

HEAD = TaskHead("label", 2, ("negative", "positive"))


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tokenizer = task_files.tokenizer(folder / "tokenizer")
    task = GlueTask(
        kind="glue", name="sst2", folder=task_files.sst2(folder), tokenizer=str(tokenizer), sequence_length=12
    )
    rows = TaskRows(task.open("dev").encoded, 12)
    return [rows.take(np.arange(at, at + 8)) for at in range(0, 32, 8)]


@pytest.fixture(scope="module")
def exported(batches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    model = tiny.task_model("bert", HEAD, vocab_size=128, initializer_range=0.3).eval()
    said: list[logging.LogRecord] = []
    listener = logging.Handler()
    listener.emit = said.append
    logging.getLogger().addHandler(listener)
    onnx.write(model, batches[0], folder / "fp32.onnx", int8=False)
    onnx.write(model, batches[0], folder / "int8.onnx", int8=True)
    logging.getLogger().removeHandler(listener)
    assert said == [], "libraries warn of nothing that a user could mend"
    return model, folder


def test_fp32_answers_as_torch_whatever_the_shape(exported, batches):
    model, folder = exported
    facts = check.compare(model, folder / "fp32.onnx", [*batches, *batches[0].split(1)])
    assert facts["num_rows"] == 40
    assert facts["relative_error"] < 1e-5
    assert facts["agreement_top1"] == 1
    assert facts["seconds_onnx"] > 0


def test_int8_is_smaller_and_not_the_same(exported, batches):
    model, folder = exported
    facts = check.compare(model, folder / "int8.onnx", batches)
    assert 1e-4 < facts["relative_error"] < 1  # random and 16 wide: coarser than what anyone exports
    assert facts["bytes"] < (folder / "fp32.onnx").stat().st_size
    import onnx as package

    kinds = {node.op_type for node in package.load(folder / "int8.onnx").graph.node}
    assert "MatMulInteger" in kinds


def test_a_model_that_answers_otherwise_is_seen(exported, batches):
    model, folder = exported
    other = tiny.task_model("bert", HEAD, vocab_size=128, initializer_range=0.3, seed=1).eval()
    assert check.compare(other, folder / "fp32.onnx", batches)["relative_error"] > 0.5
    with torch.no_grad():
        model.hf.bert.encoder.layer[0].attention.self.value.weight.mul_(1.05)
    assert check.compare(model, folder / "fp32.onnx", batches)["relative_error"] > onnx.TOLERATED["onnx"]


def test_a_format_that_is_not_there_is_told(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    done = processes.megadistill("export", tmp_path, "--to", "tflite")
    assert done.returncode == 2
    assert "there are: hf, onnx, onnx-int8" in done.stderr


def test_the_loss_of_a_language_model_is_that_of_both(tmp_path):
    model, batch = tiny.language_model("bert", initializer_range=0.3).eval(), tiny.batch(6)
    onnx.write(model, batch, tmp_path / "fp32.onnx", int8=False)
    run = SimpleNamespace(task=None)
    found = check.scores(run, model, tmp_path / "fp32.onnx", batch.split(4))["loss"]
    assert found["onnx"] == pytest.approx(found["torch"], rel=1e-5)
    logits = model.hf(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
    assert found["torch"] == pytest.approx(torch.nn.functional.cross_entropy(logits.mT, batch.labels).item(), rel=1e-5)


def test_a_language_models_answers_are_compared_row_by_row_and_as_one(tmp_path, monkeypatch):
    models = [tiny.language_model("bert", initializer_range=0.3, seed=seed).eval() for seed in (0, 1)]
    batch, answering, asked = tiny.batch(6), check.answering, []
    monkeypatch.setattr(check, "answering", lambda model, path: counted(answering(models[path is not None], None)))

    def counted(answer):
        return lambda batch: (asked.append(len(batch.ids)), answer(batch))[1]

    (tmp_path / "other.onnx").touch()
    facts = check.compare(models[0], tmp_path / "other.onnx", batch.split(4))
    assert set(asked) == {1}, "logits of a whole vocabulary at each position are large"
    theirs, ours = (answering(model, None)(batch)[batch.mask.numpy()].astype(np.float64) for model in models)
    wanted = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs - theirs.mean(0))
    assert facts["relative_error"] == pytest.approx(wanted, rel=1e-6)
    assert facts["max_difference"] == pytest.approx(np.abs(ours - theirs).max(), rel=1e-6)
    assert facts["agreement_top1"] == (ours.argmax(-1) == theirs.argmax(-1)).mean()
