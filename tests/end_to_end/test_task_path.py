"""Fine-tune a teacher, kill it, continue, distil it, score it, export it: a task's run is a run like any other."""

import json

import pytest
import yaml

from megadistill.core.files import read_lines
from megadistill.testing import processes, task_files

SIZES = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
SIZES |= {"max_position_embeddings": 16, "initializer_range": 0.1}


def megadistill(*arguments, code=0):
    done = processes.megadistill(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("task")
    tokenizer = task_files.tokenizer(folder / "tokenizer")
    task = {"kind": "glue", "name": "sst2", "folder": str(task_files.sst2(folder / "glue")), "sequence_length": 16}
    tree = {
        "name": "teacher",
        "directory": str(folder / "runs"),
        "task": {**task, "tokenizer": str(tokenizer)},
        "student": {"kind": "hf", "architecture": "bert", "config": SIZES},
        "objectives": [{"kind": "hard_ce"}],
        "batch": {"global_size": 16, "micro_size": 8},
        "optimizer": {"learning_rate": 3.0e-3},
        "train": {"steps": 40, "timeout_seconds": 120},
        "checkpoint": {"every_steps": 10},
        "log": {"every_steps": 10, "hash_every_steps": 10, "tensorboard": False, "rows": True},
    }
    (folder / "teacher.yaml").write_text(yaml.safe_dump(tree))
    megadistill("train", folder / "teacher.yaml")
    return folder


def hashes(run):
    return {row["step"]: row["parameter_hash"] for row in read_lines(run / "metrics.jsonl") if "parameter_hash" in row}


@pytest.mark.slow
def test_a_continued_run_equals_the_uninterrupted_one_and_sees_every_example_once_an_epoch(folder):
    config = folder / "teacher.yaml"
    megadistill("train", config, "name=again", "train.steps=20", "schedule.total_steps=40")
    megadistill("train", config, "name=again", "schedule.total_steps=40")
    assert hashes(folder / "runs" / "again") == hashes(folder / "runs" / "teacher")
    log = read_lines(folder / "runs" / "again" / "logs" / "rows-rank-0000.jsonl")
    steps = {line["step"]: line["rows"] for line in log}
    epoch = [row for step in range(1, 5) for row in steps[step]]
    assert sorted(epoch) == list(range(64))


@pytest.mark.slow
def test_the_teacher_is_scored_by_the_tasks_own_metric(folder):
    run = folder / "runs" / "teacher"
    scores = json.loads(megadistill("evaluate", run))["task"]
    lines = (run / "evaluation" / "predictions-dev.jsonl").read_text().splitlines()
    truth = ["positive" if number % 2 else "negative" for number in range(32)]
    accuracy = sum(json.loads(line) == label for line, label in zip(lines, truth, strict=True)) / 32
    assert scores["dev/accuracy"] == scores["score"] == accuracy
    heldout = [row["heldout/accuracy"] for row in read_lines(run / "metrics.jsonl") if "heldout/accuracy" in row]
    assert heldout[-1] == pytest.approx(accuracy)
    assert accuracy > 0.6
    assert "this run can be scored with: task" in megadistill("evaluate", run, "--tasks", "heldout", code=2)


@pytest.mark.slow
def test_a_student_is_distilled_from_the_run_and_leaves_as_a_plain_folder(folder, tmp_path):
    student = {"kind": "hf", "config": {"num_hidden_layers": 1}, "init": {"kind": "teacher_layers", "layers": [0]}}
    objectives = [{"kind": "hard_ce", "weight": 0.5}, {"kind": "soft_ce", "scope": "targets"}]
    objectives += [{"kind": "hidden_mse", "layers": {1: 2}}]
    given = [f"student={json.dumps(student)}", f"objectives={json.dumps(objectives)}"]
    teacher = f"teacher={json.dumps({'kind': 'online', 'path': str(folder / 'runs' / 'teacher')})}"
    megadistill("train", folder / "teacher.yaml", *given, teacher, "name=student")
    run = folder / "runs" / "student"
    rows = [row for row in read_lines(run / "metrics.jsonl") if "train/loss" in row]
    assert rows[-1]["train/loss"] < rows[0]["train/loss"]
    assert rows[-1]["teacher/loss"] < 0.69
    megadistill("export", run, "--to", "hf", "--output", tmp_path / "hf")

    from transformers import pipeline

    classify = pipeline("text-classification", str(tmp_path / "hf"))
    text = task_files.sentences(32, seed=32)[0][0]
    megadistill("evaluate", run)
    shown = (run / "evaluation" / "predictions-dev.jsonl").read_text().splitlines()
    assert classify(text)[0]["label"] == json.loads(shown[0])
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "sst2" in card
    megadistill("report", run)
    assert "sst2" in (run / "report.html").read_text()


@pytest.mark.slow
def test_what_a_run_learns_on_tasks_names_the_step_it_started_from_and_stands_in_the_papers_table(folder, tmp_path):
    run = folder / "runs" / "teacher"
    given = ["batch={global_size: 16, micro_size: 16}", "task.sequence_length=16", "engine.precision=fp32"]
    options = [
        "--tasks",
        "sst2",
        "--data",
        folder,
        "--seeds",
        "0",
        "--epochs",
        "1",
        "--output",
        tmp_path / "worth-tasks",
    ]
    done = processes.megadistill("evaluate", run, *given, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["model"] == f"{run}@40"
    assert f"path: {run}@40" in (tmp_path / "worth-tasks" / "sst2-seed-0.yaml").read_text()
    megadistill("evaluate", run)
    megadistill("report", tmp_path / "worth-tasks", run, "--teacher", run, "--output", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert (
        f"{found['sst2']['median'] / json.loads((run / 'evaluation' / 'task.json').read_text())['score']:.1%}" in page
    )
    assert "Sanh et al. 2019" in page


@pytest.mark.slow
def test_it_leaves_as_onnx_once_that_answers_as_torch(folder):
    pytest.importorskip("onnxruntime")
    run = folder / "runs" / "teacher"
    told = megadistill("export", run, "--to", "onnx-int8")
    out = run / "export" / "onnx-int8"
    assert str(out) in told
    facts = json.loads((out / "check.json").read_text())
    assert facts["num_rows"] == 32
    megadistill("evaluate", run)
    scored = json.loads((run / "evaluation" / "task.json").read_text())
    assert facts["scores"]["accuracy"]["torch"] == scored["dev/accuracy"]
    assert facts["scores"]["accuracy"]["onnx"] == pytest.approx(scored["dev/accuracy"], abs=0.1)
    assert f"- accuracy: {facts['scores']['accuracy']['onnx']:.6g}, torch's" in (out / "README.md").read_text()
    assert {"model.onnx", "config.json", "tokenizer.json", "README.md"} <= {path.name for path in out.iterdir()}
    (folder / "glue" / "SST-2" / "dev.tsv").rename(folder / "dev.tsv")  # nothing to check it on
    try:
        told = megadistill("export", run, "--to", "onnx", code=2)
    finally:
        (folder / "dev.tsv").rename(folder / "glue" / "SST-2" / "dev.tsv")
    assert "has no dev set of sst2" in told
    assert sorted(path.name for path in (run / "export").iterdir()) == ["onnx-int8"]


@pytest.mark.slow
def test_a_teacher_without_a_fitting_head_is_told_and_nothing_is_written(folder):
    from megadistill.models.loading import save_pretrained
    from megadistill.testing import tiny

    words = len((folder / "tokenizer" / "vocab.txt").read_text().split())
    model = tiny.language_model("bert", vocab_size=words, max_position_embeddings=16)
    save_pretrained(model, folder / "lm", {name: p.detach() for name, p in model.named_parameters()})
    teacher = f"teacher={json.dumps({'kind': 'online', 'path': str(folder / 'lm')})}"
    soft = 'objectives=[{"kind": "soft_ce", "scope": "targets"}]'
    told = megadistill("train", folder / "teacher.yaml", teacher, soft, "name=none", code=2)
    assert "teacher: BertForMaskedLM has no head for this task" in told
    assert not (folder / "runs" / "none").exists()
