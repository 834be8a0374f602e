"""A task's run on two ranks, its state sharded, is the run of one: with variants of its examples, and with choices."""

import json

import pytest
import yaml

from megadistill.core.files import read_lines
from megadistill.models.loading import save_pretrained
from megadistill.tasks.glue import GlueTask
from megadistill.tasks.race import RaceTask
from megadistill.testing import processes, task_files, tiny

SIZES = {"max_position_embeddings": 32, "initializer_range": 0.2}


def losses(run):
    rows = [row for row in read_lines(run / "metrics.jsonl") if "train/loss" in row]
    return [[row[name] for name in sorted(row) if name.startswith(("train/loss", "train/objective"))] for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    tokenizer = task_files.tokenizer(folder / "tokenizer")
    words = len((tokenizer / "vocab.txt").read_text().split())
    common = {"tokenizer": str(tokenizer), "sequence_length": 24}
    tasks = {
        "glue": GlueTask(kind="glue", name="sst2", folder=task_files.sst2(folder / "glue"), **common),
        "race": RaceTask(kind="race", folder=task_files.race(folder / "race"), **common),
    }
    bodies = {"mlm": tiny.language_model("bert", vocab_size=words, **SIZES)}
    bodies |= {
        name: tiny.task_model("bert", task.head, 4, 1, vocab_size=words, **SIZES) for name, task in tasks.items()
    }
    for name, model in bodies.items():
        save_pretrained(model, folder / name / "model", {key: p.detach() for key, p in model.named_parameters()})
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    tree = {
        "directory": str(folder / "runs"),
        "student": {"kind": "hf", "config": {"num_hidden_layers": 2, **dropout}},
        "batch": {"global_size": 16, "micro_size": 4},
        "schedule": {"kind": "constant", "warmup_fraction": 0.0, "total_steps": 6},
        "train": {"steps": 4, "timeout_seconds": 120},
        "checkpoint": {"every_steps": 4},
        "log": {"every_steps": 1, "tensorboard": False},
        "engine": {"persistence_threshold": 0},
    }
    augment = {
        "kind": "tinybert",
        "language_model": str(folder / "mlm" / "model"),
        "tokenizer": str(tokenizer),
        "vectors": str(task_files.vectors(folder / "vectors.txt")),
        "cache": str(folder / "augmented"),
        "samples": 4,
    }
    recipes = {
        "glue": {
            "objectives": [{"kind": "hard_ce", "weight": 0.5}, {"kind": "soft_ce", "scope": "targets"}],
            "optimizer": {"kind": "adadelta", "learning_rate": 1.0},
        },
        "race": {
            "objectives": [{"kind": "hard_ce"}, {"kind": "soft_ce", "scope": "targets"}, {"kind": "pkd", "weight": 10}],
            "optimizer": {"learning_rate": 1.0e-3},
        },
    }
    for name, recipe in recipes.items():
        task = json.loads(tasks[name].model_dump_json())
        task |= {"augment": augment} if name == "glue" else {}
        teacher = {"kind": "online", "path": str(folder / name / "model"), "guard": None}
        text = yaml.safe_dump({**tree, **recipe, "name": name, "task": task, "teacher": teacher})
        (folder / f"{name}.yaml").write_text(text)
    return folder


def train(folder, config, ranks, *options):
    arguments = ["-m", "megadistill", "train", str(folder / f"{config}.yaml"), *options]
    return processes.run(arguments, ranks)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize(("config", "stage"), [("glue", 2), ("race", 3)])
def test_two_ranks_are_one(folder, config, stage):
    runs = folder / "runs"
    train(folder, config, 1, "name=" + config, "engine.zero_stage=1")
    train(folder, config, 2, f"name={config}-two", f"engine.zero_stage={stage}")
    alone, two = losses(runs / config), losses(runs / f"{config}-two")
    assert len(alone) == 4
    for one, other in zip(alone, two, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-7)
    assert alone[-1] != alone[0]


@pytest.mark.distributed
@pytest.mark.slow
def test_variants_are_made_once_and_trained_on(folder):
    """What two ranks make, each its share, is what `prepare` makes in one process."""
    if not (folder / "runs" / "glue-two").exists():
        train(folder, "glue", 2, "name=glue-two", "engine.zero_stage=2")
    (made,) = (folder / "augmented").iterdir()
    stats = json.loads((made / "stats.json").read_text())
    assert stats["produced"] > 150
    again = processes.megadistill("prepare", folder / "glue.yaml", f"task.augment.cache={folder / 'other'}")
    assert f"their variants: {folder / 'other' / made.name}" in again.stdout
    assert {f.name: f.read_bytes() for f in (folder / "other" / made.name).iterdir()} == {
        f.name: f.read_bytes() for f in made.iterdir()
    }


@pytest.mark.distributed
@pytest.mark.slow
def test_adadelta_goes_on_as_it_was_and_only_so(folder):
    if not (folder / "runs" / "glue-two").exists():
        train(folder, "glue", 2, "name=glue-two", "engine.zero_stage=2")
    longer = ["name=glue-two", "engine.zero_stage=2", "train.steps=6"]
    alone = processes.megadistill("train", folder / "glue.yaml", *longer)
    assert alone.returncode == 2
    assert "a checkpoint of adadelta can be continued only as it was written" in alone.stderr
    train(folder, "glue", 2, *longer)
    train(folder, "glue", 2, "name=glue-six", "engine.zero_stage=2", "train.steps=6")
    assert losses(folder / "runs" / "glue-two") == losses(folder / "runs" / "glue-six")


@pytest.mark.slow
def test_a_student_of_choices_is_scored_and_leaves_as_onnx(folder):
    pytest.importorskip("onnxruntime")
    if not (folder / "runs" / "race").exists():
        train(folder, "race", 1, "name=race", "engine.zero_stage=1")
    done = processes.megadistill("evaluate", folder / "runs" / "race")
    scores = json.loads(done.stdout)["task"]
    assert {"dev/accuracy", "test/accuracy", "test/accuracy_high", "score"} <= scores.keys()
    told = processes.megadistill("export", folder / "runs" / "race", "--to", "onnx")
    assert told.returncode == 0, told.stderr
    facts = json.loads((folder / "runs" / "race" / "export" / "onnx" / "check.json").read_text())
    assert facts["num_rows"] == 64
    assert facts["scores"]["accuracy"]["onnx"] == facts["scores"]["accuracy"]["torch"] == scores["dev/accuracy"]
