"""A teacher, DeiT distilled from it, killed and continued, on one rank and on two, scored and exported: on images."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from megadistill.core.files import read_lines
from megadistill.run.config import load
from megadistill.testing import image_files, processes

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8}
HARD = [
    {"kind": "hard_ce", "weight": 0.5, "head": "class"},
    {"kind": "teacher_label", "weight": 0.5, "head": "distillation", "scope": "targets"},
]


def megadistill(*arguments, code=0):
    done = processes.megadistill(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The teacher, a plain vision transformer, and its student, both trained."""
    folder = tmp_path_factory.mktemp("images")
    train, dev = (image_files.shards(folder / part, count, count) for part, count in (("train", 192), ("dev", 60)))
    names, crops = list(image_files.NAMES), {"area": [0.5, 1.0]}
    tree = {
        "name": "teacher",
        "directory": str(folder / "runs"),
        "task": {
            "kind": "image",
            "train": [train],
            "dev": [dev],
            "image_size": 32,
            "labels": names,
            "crops": crops,
        },
        "student": {"kind": "hf", "architecture": "vit", "config": SIZES},
        "objectives": [{"kind": "hard_ce"}],
        "batch": {"global_size": 32, "micro_size": 16},
        "optimizer": {"learning_rate": 3.0e-3},
        "train": {"steps": 40, "timeout_seconds": 120},
        "checkpoint": {"every_steps": 10},
        "log": {"every_steps": 1, "hash_every_steps": 10, "tensorboard": False, "rows": True},
    }
    (folder / "teacher.yaml").write_text(yaml.safe_dump(tree))
    tree |= {
        "name": "student",
        "student": {"kind": "hf", "architecture": "deit", "config": SIZES},
        "teacher": {"kind": "online", "path": str(folder / "runs" / "teacher")},
        "objectives": HARD,
    }
    (folder / "student.yaml").write_text(yaml.safe_dump(tree))
    megadistill("train", folder / "teacher.yaml")
    megadistill("train", folder / "student.yaml")
    return folder


def metrics(run, name):
    return {row["step"]: row[name] for row in read_lines(run / "metrics.jsonl") if name in row}


def rows(run, ranks):
    """Step -> (row, hash of its pixels, hash of its label) of all ranks."""
    found = {}
    for rank in range(ranks):
        for line in read_lines(run / "logs" / f"rows-rank-{rank:04d}.jsonl"):
            found.setdefault(line["step"], set()).update(zip(line["rows"], line["inputs"], line["labels"], strict=True))
    return found


@pytest.mark.slow
def test_the_student_learns_from_labels_and_teacher(folder):
    run = folder / "runs" / "student"
    for label in ("hard_ce", "teacher_label"):
        learnt = metrics(run, f"train/objective/{label}")
        assert learnt[40] < 0.6 * learnt[1]
    scores = json.loads(megadistill("evaluate", run))["task"]
    assert scores["dev/accuracy"] > 0.6  # by chance 1 in 6
    assert scores["score"] == scores["dev/accuracy"] <= scores["dev/accuracy_top5"]
    assert metrics(run, "heldout/accuracy")[40] == pytest.approx(scores["dev/accuracy"])
    told = megadistill("evaluate", run, "--tasks", "sst2", "--data", folder, code=2)
    assert "learnt images: it has no tokenizer" in told


@pytest.mark.slow
def test_a_continued_run_equals_the_uninterrupted_one_and_sees_every_image_once_an_epoch(folder):
    config, runs = folder / "student.yaml", folder / "runs"
    megadistill("train", config, "name=again", "train.steps=20", "schedule.total_steps=40")
    megadistill("train", config, "name=again", "schedule.total_steps=40")
    assert metrics(runs / "again", "parameter_hash") == metrics(runs / "student", "parameter_hash")
    seen = rows(runs / "again", 1)
    assert seen == rows(runs / "student", 1)
    first, second = ([one for step in steps for one in seen[step]] for steps in (range(1, 7), range(7, 13)))
    assert sorted(row for row, _, _ in first) == sorted(row for row, _, _ in second) == list(range(192))
    again = dict((row, pixels) for row, pixels, _ in second)
    assert sum(again[row] == pixels for row, pixels, _ in first) < 10  # cropped anew


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_see_the_same_global_batches(folder):
    options = ["name=two", "train.steps=8", "schedule.total_steps=40", "batch.micro_size=8", "engine.zero_stage=3"]
    processes.run(["-m", "megadistill", "train", str(folder / "student.yaml"), *options], 2)
    one, two = (rows(folder / "runs" / name, ranks) for name, ranks in (("student", 1), ("two", 2)))
    assert two == {step: one[step] for step in range(1, 9)}
    ours, theirs = (metrics(folder / "runs" / name, "train/loss") for name in ("two", "student"))
    assert [ours[step] for step in range(1, 9)] == pytest.approx([theirs[step] for step in range(1, 9)], rel=1e-4)


@pytest.mark.slow
def test_it_leaves_as_a_folder_that_transformers_reads(folder):
    run = folder / "runs" / "student"
    megadistill("evaluate", run)
    megadistill("export", run, "--to", "hf")
    out = run / "export" / "hf"
    assert "images like the task's" in (out / "README.md").read_text()

    from transformers import AutoImageProcessor, DeiTForImageClassificationWithTeacher

    processor = AutoImageProcessor.from_pretrained(out, backend="pil")
    model = DeiTForImageClassificationWithTeacher.from_pretrained(out).eval()
    _, image = next(iter(image_files.pictures(60, 60)))
    assert isinstance(image, Image.Image)
    with torch.no_grad():
        answer = model(**processor(image, return_tensors="pt"))
    mean = answer.cls_logits.softmax(-1) + answer.distillation_logits.softmax(-1)
    shown = (run / "evaluation" / "predictions-dev.jsonl").read_text().splitlines()
    assert model.config.id2label[int(mean.argmax())] == json.loads(shown[0])


@pytest.mark.slow
def test_it_leaves_as_onnx_once_that_answers_as_torch(folder):
    pytest.importorskip("onnxruntime")
    run = folder / "runs" / "student"
    megadistill("export", run, "--to", "onnx-int8")
    out = run / "export" / "onnx-int8"
    assert json.loads((out / "check.json").read_text())["num_rows"] == 60
    assert {"model.onnx", "config.json", "preprocessor_config.json", "README.md"} <= {
        path.name for path in out.iterdir()
    }


@pytest.mark.slow
def test_mistakes_are_told_before_anything_is_written(folder):
    def refused(*changes):
        told = megadistill("train", folder / "student.yaml", "name=none", *changes, code=2)
        assert not (folder / "runs" / "none").exists()
        return told

    assert "cannot learn a task's images" in refused('objectives=[{"kind": "cosine"}]')
    vit = f"student={json.dumps({'kind': 'hf', 'architecture': 'vit', 'config': SIZES})}"
    assert "objectives.0.head (hard_ce)" in (told := refused(vit))
    assert "ViTForImageClassification) has only one head" in told
    names = ["cyan", "blue", *image_files.NAMES[2:]]
    layout = image_files.folder(folder / "layout", 48, 3)
    where = [f'task.train=["{layout}"]', f'task.dev=["{layout}"]']
    assert "has the task's classes in another order" in refused(f"task.labels={json.dumps(names)}", *where)
    (layout / "red").rename(folder / "red")
    told = refused("task.labels=null", *where)
    assert "it answers with 6 classes of images, and the task asks for 5 classes of images" in told
    bert = f"student={json.dumps({'kind': 'hf', 'architecture': 'bert'})}"
    assert "bert has no model for a task's image" in refused(bert)


@pytest.mark.slow
def test_an_image_that_is_damaged_ends_the_run_by_name_and_once_mended_it_goes_on_as_if_nothing_was(folder):
    options = ["name=damaged", "train.steps=10", "schedule.total_steps=40", "checkpoint.every_steps=2"]
    config = load(folder / "student.yaml")
    rows = config.task.open("train").rows
    row = int(rows.order(config.seed, []).locate(np.array([5 * 32 + 7])).row[0])  # of step 6
    file, start, size = rows.images.places[3 * row : 3 * row + 3]
    shard = rows.images.files[file]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:start] + bytes(size) + whole[start + size :])
    try:
        told = megadistill("train", folder / "student.yaml", *options, code=2)
    finally:
        shard.write_bytes(whole)
    assert f"{shard} member {rows.images.keys[row]} cannot be read as an image" in told
    megadistill("train", folder / "student.yaml", *options)
    runs = folder / "runs"
    assert metrics(runs / "damaged", "parameter_hash")[10] == metrics(runs / "student", "parameter_hash")[10]
