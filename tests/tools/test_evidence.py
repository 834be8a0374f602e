"""The evidence tool: its arms are runs that fit together, and its table says which comparisons say nothing."""

import importlib
import json
from pathlib import Path

import pytest

from megadistill.evaluate import finetune
from megadistill.models.loading import save_pretrained
from megadistill.testing import task_files, tiny

ROOT = Path(__file__).resolve().parents[2]
TOY = ["batch={global_size: 16, micro_size: 16}", "engine.precision=fp32", "optimizer.learning_rate=5e-3"]


@pytest.fixture(autouse=True)
def tools_import_each_other(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")


def tool(name):
    return importlib.import_module(name)


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    """The tool, with toy models where its own lie, and toy tasks."""
    made = tool("evidence")
    monkeypatch.setattr(made, "KEPT", tmp_path / "kept")
    monkeypatch.setattr(made, "RUNS", tmp_path / "runs")
    small = {"task.sequence_length": 32, "task.max_question": 8, "task.stride": 8}
    changes = {task: [f"{key}={value}" for key, value in small.items()] for task in made.TASKS}
    for task in changes:
        changes[task] = changes[task] if task == "squad" else changes[task][:1]
    monkeypatch.setattr(made, "TASKS", {task: (8.0, settings) for task, settings in changes.items()})
    data = tmp_path / "data"
    for name in ("sst2", "stsb"):
        getattr(task_files, name)(data / "glue")
    task_files.imdb(data / "imdb")
    task_files.squad(data / "squad")
    sizes = {"max_position_embeddings": 64, "initializer_range": 0.1}
    for folder, kind in (("kept/teacher", "bert"), ("kept/distilled", "distilbert"), ("kept/plain", "bert")):
        words = len((task_files.tokenizer(tmp_path / folder) / "vocab.txt").read_text().split())
        model = tiny.language_model(kind, vocab_size=words, **sizes)
        save_pretrained(model, tmp_path / folder, {name: p.detach() for name, p in model.named_parameters()})
    return made, data, {"layers": 1, "seeds": "0", "task": TOY}


def test_every_arm_of_every_task_is_a_config_that_holds(evidence):
    made, data, size = evidence
    for arm in made.arms(size["layers"]):
        for task in {"sst2", "stsb", "imdb", "squad"} & set(arm.tasks):
            changes, recipe = made.how(arm, task, size)
            plan = finetune.Plan(data, (0,), 1.0, recipe and ROOT / recipe, tuple(changes))
            tree = finetune._tree(task, arm.model, str(made.KEPT / "teacher"), plan)
            assert tree["student"].get("init", {}).get("path", arm.model) == arm.model, (arm.name, task)
            assert ("teacher" in tree) == (arm.recipes is not None)


@pytest.mark.soak
def test_arms_are_learnt_from_each_other_and_are_kept(evidence, tmp_path):
    made, data, size = evidence
    arms = {arm.name: arm for arm in made.arms(size["layers"])}
    for name in ("teacher", "task_distilled", "pkd", "bilstm"):
        made.learn(arms[name], "sst2", data, size)
        scores = json.loads((tmp_path / "kept" / "tasks" / name / "sst2.json").read_text())
        assert scores["num_seeds"] == 1
        assert 0 <= scores["median"] <= 1


def test_the_table_says_gains_and_what_compares_nothing(tmp_path):
    tables = tool("evidence_tables")
    assert tables.evidence_table(tmp_path) == ""
    given = {"teacher": (0.80, 0.20), "distilled": (0.79, 0.18), "untrained": (0.75, 0.175)}
    for arm, scores in given.items():
        for task, median in zip(("sst2", "stsb"), scores, strict=True):
            file = tmp_path / "evidence" / "tasks" / arm / f"{task}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            spread = {"median": median, "min": median - 0.01, "max": median + 0.01, "num_seeds": 3.0}
            file.write_text(json.dumps({**spread, "num_parameters": 1000}))
    table = tables.evidence_table(tmp_path)
    assert "| distilled while pretraining | 1,000 | 79.0 ± 1.0 (+4.0) | 18.0 ± 1.0 (+0.5) |" in table
    assert "hardly learnt STS-B, correlation:" in table
    assert "SST-2, accuracy:" not in table
    (tmp_path / "evidence" / "tasks" / "teacher" / "stsb.json").unlink()
    table = tables.evidence_table(tmp_path)
    assert "hardly learnt" not in table
    assert "What the teacher reaches on STS-B, correlation is not measured." in table
