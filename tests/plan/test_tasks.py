"""What `plan` says of runs with a task: fine-tuning and distilling, on texts, pairs, choices, spans and images."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from megadistill.cli import app
from megadistill.core.errors import UserError
from megadistill.plan.estimate import USABLE, measure, plan
from megadistill.plan.machine import GPUS, Machine
from megadistill.plan.page import page
from megadistill.run.config import check
from megadistill.testing import image_files, task_files

LENGTH, STEPS, ROWS = 48, 40, 16
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128, "num_hidden_layers": 1}
SOFT = {"kind": "soft_ce", "temperature": 2, "scope": "targets"}
OBJECTIVES = {
    "text": [SOFT, {"kind": "hard_ce"}],
    "pair": [{"kind": "value_mse"}, {"kind": "logits_mse", "scope": "targets"}],
    "span": [{"kind": "span_ce"}, {"kind": "span_soft_ce", "temperature": 2}],
    "choice": [SOFT, {"kind": "pkd", "layers": {1: 2}}],
    "image": [SOFT, {"kind": "hard_ce"}],
}
CLASSES = {
    "text": ("BertForSequenceClassification", 2),
    "pair": ("BertForSequenceClassification", 1),
    "span": ("BertForQuestionAnswering", 2),
    "choice": ("BertForMultipleChoice", 1),
    "image": ("ViTForImageClassification", 6),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Data of each kind, and of each teacher only what says its sizes."""
    folder = tmp_path_factory.mktemp("tasks")
    task_files.tokenizer(folder / "tokenizer")
    for make in (task_files.sst2, task_files.stsb, task_files.race):
        make(folder / ("race" if make is task_files.race else "glue"))
    task_files.squad(folder)
    image_files.folder(folder / "images", 24, seed=0)
    vocabulary = len((folder / "tokenizer" / "vocab.txt").read_text().split())
    for kind, (name, outputs) in CLASSES.items():
        config = {**SIZES, "num_hidden_layers": 2, "architectures": [name]}
        config |= {"model_type": name[: name.index("For")].lower()}
        config |= {"id2label": {str(n): f"LABEL_{n}" for n in range(outputs)}}
        config |= {"image_size": 32, "patch_size": 8} if kind == "image" else {"vocab_size": vocabulary}
        (folder / f"teacher_{kind}").mkdir()
        (folder / f"teacher_{kind}" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tree(files):
    def make(kind, distil=True, **more):
        text = {"tokenizer": str(files / "tokenizer"), "sequence_length": LENGTH}
        task = {
            "text": {"kind": "glue", "name": "sst2", "folder": str(files / "glue"), **text},
            "pair": {"kind": "glue", "name": "stsb", "folder": str(files / "glue"), **text},
            "span": {"kind": "squad", "train": str(files / "train.json"), "dev": str(files / "dev.json"), **text}
            | {"max_question": 8, "stride": 16},
            "choice": {"kind": "race", "folder": str(files / "race"), **text},
            "image": {"kind": "image", "train": [str(files / "images")], "dev": [str(files / "images")]}
            | {"image_size": 32},
        }[kind]
        shape = {"image_size": 32, "patch_size": 8} if kind == "image" else {}
        objectives = OBJECTIVES[kind] if distil else [{"kind": "hard_ce"}]
        return {
            "name": "planned",
            "task": task,
            "teacher": {"kind": "online", "path": str(files / f"teacher_{kind}")} if distil else None,
            "student": {"kind": "hf", "architecture": "vit" if shape else "bert", "config": {**SIZES, **shape}},
            "objectives": objectives,
            "batch": {"global_size": ROWS, "micro_size": 4},
            "train": {"steps": STEPS},
        } | more

    return make


def machine(gpus=2, memory=80e9, **more):
    return Machine(gpus, memory, GPUS["h100"].bf16, **more)


def made(tree, where=None):
    return plan(check(tree, "the test"), where or machine())


@pytest.mark.parametrize("kind", list(OBJECTIVES))
def test_every_kind_of_task_is_planned(tree, kind):
    done = made(tree(kind))
    assert done.fits
    assert done.parameters.teacher > done.parameters.student > 0
    assert done.footprint.activations > 0
    assert done.footprint.teacher_flops > 0
    assert done.work.flops > 0
    assert done.rows.each == (4 if kind == "choice" else 1)
    assert done.work.epochs == pytest.approx(STEPS * ROWS / done.rows.examples)


def test_tokens_are_those_of_the_rows_and_memory_is_for_the_longest(tree):
    config = check(tree("text", distil=False), "the test")
    done, lengths = made(tree("text", distil=False)), config.task.open("train").rows.lengths
    assert done.rows.examples == 64
    assert done.rows.longest == lengths.max() < LENGTH
    assert done.rows.tokens == pytest.approx(lengths.mean(), rel=0.03)
    assert done.work.tokens == round(STEPS * ROWS * done.rows.tokens)
    assert done.rows.tokens < done.rows.width <= 16
    assert done.footprint == measure(config, 2)[1]
    assert measure(config, 2, width=16)[1].activations < 0.5 * done.footprint.activations
    weights = done.parameters.student - 64 * 2  # nearly all: a third is in tables, which are only read
    assert done.work.flops < 6 * weights * STEPS * ROWS * 16 * 1.1


def test_padding_costs_operations_and_no_tokens(tree):
    """Two rows a pass are padded less than sixteen: short ones lie with short ones."""
    few, many = (made(tree("text", batch={"global_size": 32, "micro_size": n}), machine(1)) for n in (2, 16))
    assert few.work.tokens == many.work.tokens
    assert few.rows.width < many.rows.width
    assert few.work.flops < many.work.flops


def test_images_are_counted_as_images(tree):
    done, config = made(tree("image")), check(tree("image"), "the test")
    assert done.work.tokens == STEPS * ROWS
    assert "images/s" in page(done, config)
    assert "tokens" not in page(done, config)


def test_a_student_that_is_no_transformer_is_planned(tree):
    student = {"kind": "bilstm", "hidden_size": 16, "inner_size": 8}
    done = made(tree("text", student=student, objectives=[{"kind": "logits_mse", "scope": "targets"}]))
    assert done.footprint.forward_flops > 0


def test_micro_size_auto_is_the_most_that_fit(tree):
    auto = {"global_size": 32, "micro_size": "auto"}
    whole = made(tree("text", batch=auto))
    assert whole.micro_size == 16
    half = made(tree("text", batch={"global_size": 32, "micro_size": 8})).footprint.peak
    room = (half + whole.footprint.peak) / 2 / USABLE
    assert made(tree("text", batch=auto), machine(memory=room)).micro_size == 8


@pytest.mark.parametrize(("kind", "field"), [("text", "folder"), ("span", "train"), ("choice", "folder")])
def test_a_missing_file_is_named(tree, kind, field):
    given = tree(kind)
    given["task"][field] = "nowhere/at_all"
    with pytest.raises(UserError, match="nowhere/at_all"):
        made(given)


def test_variants_are_not_made_to_be_counted(tree, tmp_path):
    given, cache = tree("text"), tmp_path / "cache"
    task_files.tagger(tmp_path / "tagger")
    given["task"]["augment"] = {"kind": "tang", "tagger": str(tmp_path / "tagger"), "samples": 1, "cache": str(cache)}
    with pytest.raises(UserError, match=r"megadistill prepare"):
        made(given)
    assert not cache.exists()


def test_the_command_says_epochs(tree, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(tree("choice")), encoding="utf-8")
    runner = CliRunner()
    told = runner.invoke(app, ["plan", str(file), "--gpus", "2"])
    assert told.exit_code == 0, told.output
    for word in ("13.3 of 48 examples of 4 rows", f"memory is for {LENGTH}", "2 x 4 examples"):
        assert word in told.output
    assert "shards" not in told.output
    found = json.loads(runner.invoke(app, ["plan", str(file), "--gpus", "2", "--json"]).stdout)
    assert found["work"]["epochs"] == pytest.approx(STEPS * ROWS / 48)
    assert found["rows"]["each"] == 4
