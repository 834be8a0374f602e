"""Scores on tasks: which are asked for, by which configs, and what several seeds say together."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from megadistill.core.errors import UserError
from megadistill.evaluate import finetune
from megadistill.evaluate.ask import Request, ask
from megadistill.evaluate.finetune import Plan, chosen
from megadistill.evaluate.speed import flops, speed
from megadistill.models.loading import load_pretrained, save_pretrained
from megadistill.run.presets import resolve
from megadistill.testing import processes, task_files, tiny

SIZES = {"max_position_embeddings": 64, "initializer_range": 0.1}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    task_files.sst2(folder / "glue")
    task_files.stsb(folder / "glue")
    task_files.squad(folder / "squad-small")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    task_files.tokenizer(folder)
    words = len((folder / "vocab.txt").read_text().split())
    made = tiny.language_model("bert", vocab_size=words, **SIZES)
    save_pretrained(made, folder, {name: p.detach() for name, p in made.named_parameters()})
    return folder


def test_glue_is_what_is_there_of_it(data, tmp_path):
    assert chosen(["glue", "sst2", "squad"], data) == ["sst2", "stsb", "squad"]
    with pytest.raises(UserError, match="no evaluation task sst3"):
        chosen(["sst3"], data)
    with pytest.raises(UserError, match="holds none of GLUE's tasks"):
        chosen(["glue"], tmp_path)


def test_every_task_has_a_config_with_its_steps(data, model):
    plan = Plan(data, epochs=2, assignments=("batch={global_size: 16, micro_size: 8}", "task.sequence_length=64"))
    for task, kind in (("sst2", "hard_ce"), ("stsb", "value_mse")):
        tree = finetune._tree(task, str(model), str(model), plan)
        assert tree["task"]["name"] == task
        assert tree["student"]["init"]["path"] == str(model)
        assert tree["objectives"][0]["kind"] == kind
        assert tree["train"]["steps"] == 8  # 2 epochs of 64 examples
    small = Plan(data, assignments=("task.max_question=8", "task.stride=8", "task.sequence_length=32"))
    tree = finetune._tree("squad", str(model), str(model), small)
    assert tree["task"]["train"].endswith("squad-small/train.json")


def test_a_recipe_for_squad_says_how_squad_is_asked(data, model, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(f"extends: {resolve(Path('tasks/finetune_squad'))}\ntask: {{version: 2.0, num_best: 7}}\n")
    given = ("task.max_question=8", "task.stride=8", "task.sequence_length=32")
    found = finetune._tree("squad", str(model), str(model), Plan(data, recipe=recipe, assignments=given))["task"]
    assert (found["version"], found["num_best"], found["stride"]) == (2.0, 7, 8)
    assert found["train"].endswith("squad-small/train.json")


def test_squads_files_are_those_of_the_version_that_is_asked_for(tmp_path):
    def put(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()

    def found(version):
        return str(finetune._squad(tmp_path, "train", version).relative_to(tmp_path))

    put("squad/train-v1.1.json")
    with pytest.raises(UserError, match=r"no train set of SQuAD 2.0(.|\n)*train-v1.1.json"):
        found("2.0")
    put("squad/train-v2.0.json")
    assert (found("1.1"), found("2.0")) == ("squad/train-v1.1.json", "squad/train-v2.0.json")
    put("squad-v1.1/train-subset.json", "squad2/train.json", "squad-own/train.json")
    assert (found("1.1"), found("2.0")) == ("squad/train-v1.1.json", "squad/train-v2.0.json")
    shutil.rmtree(tmp_path / "squad")
    assert (found("1.1"), found("2.0")) == ("squad-v1.1/train-subset.json", "squad2/train.json")
    shutil.rmtree(tmp_path / "squad2")
    assert found("2.0") == "squad-own/train.json"


@pytest.mark.parametrize(("given", "option"), [("train.steps=7", "--epochs"), ("seed=3", "--seeds")])
def test_what_evaluate_fills_in_is_not_taken_and_forgotten(data, model, given, option):
    with pytest.raises(UserError, match=rf"{given}: evaluate fills that in(.|\n)*use {option}"):
        finetune._tree("sst2", str(model), str(model), Plan(data, assignments=(given,)))


def test_other_tasks_of_the_same_model_and_recipe_stay_in_the_summary(data, tmp_path):
    kept = {"model": "runs/mine@9", "recipe": None, "sst2": {"median": 0.9}, "macro": 0.9}
    (tmp_path / "summary.json").write_text(json.dumps(kept))
    result = finetune._earlier("runs/mine@9", Plan(data), tmp_path)
    assert result == {"model": "runs/mine@9", "recipe": None, "sst2": {"median": 0.9}}
    finetune._conclude(result | {"cola": {"median": 0.5}}, tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["macro"], summary["sst2"]) == (0.7, {"median": 0.9})
    assert "sst2" not in finetune._earlier("runs/mine@10", Plan(data), tmp_path)  # it has learnt more since
    assert "sst2" not in finetune._earlier("runs/mine@9", Plan(data, recipe=tmp_path / "hinton.yaml"), tmp_path)


@pytest.mark.parametrize(
    ("part", "lines", "message"),
    [
        ("dev", "sentence\tlabel\n", "dev.tsv has no examples"),
        ("dev", "sentence\tlabel\na film\n", r"dev.tsv:2: 1 column"),
        ("train", "sentence\tlabel\na film\t7\n", r"train.tsv:2: '7' is no label"),
    ],
)
def test_what_is_wrong_with_the_data_is_told_before_anything_is_trained(model, tmp_path, part, lines, message):
    task_files.sst2(tmp_path / "glue")
    (tmp_path / "glue" / "SST-2" / f"{part}.tsv").write_text(lines)
    settings = ("batch={global_size: 16, micro_size: 8}", "task.sequence_length=32")
    with pytest.raises(UserError, match=message):
        ask(model, Request(tasks=["sst2"], data=tmp_path, output=tmp_path / "out", assignments=settings))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_seeds_are_runs_that_are_scored_together_and_are_not_trained_twice(data, model, tmp_path):
    options = [
        "--tasks",
        "sst2,speed",
        "--data",
        str(data),
        "--seeds",
        "0,1",
        "--epochs",
        "1",
        "--jobs",
        "2",
        "--output",
        str(tmp_path),
    ]
    settings = ["engine.precision=fp32", "batch={global_size: 16, micro_size: 16}", "task.sequence_length=32"]

    def evaluate():
        done = processes.megadistill("evaluate", model, *settings, *options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    first = evaluate()
    scores = first["sst2"]["scores"]
    assert len(scores) == 2
    assert first["sst2"]["median"] == pytest.approx(sum(scores) / 2)
    assert first["macro"] == first["macro_without_wnli"] == first["sst2"]["median"]
    assert "mnli" in first["missing_of_glue"]
    assert json.loads((tmp_path / "summary.json").read_text())["sst2"] == first["sst2"]
    before = (tmp_path / "sst2-seed-1" / "attempts").stat().st_mtime
    assert evaluate()["sst2"] == first["sst2"]
    assert (tmp_path / "sst2-seed-1" / "attempts").stat().st_mtime == before
    other = processes.megadistill("evaluate", model, *settings, *options, "--seeds", "2,1", "--epochs", "2")
    assert other.returncode == 2
    assert "sst2-seed-1 was learnt otherwise\n  train.steps: 8 here / 4 in the run" in other.stderr
    assert "give another --output" in other.stderr
    assert not (tmp_path / "sst2-seed-2").exists()


def test_speed_counts_what_inference_runs(data, model):
    loaded = load_pretrained(str(model))
    result = speed(loaded, model, data / "glue", str(model), max_rows=5)
    assert result["num_rows"] == 5
    assert result["seconds_batch_1"] > 0
    assert result["bytes"] == (model / "model.safetensors").stat().st_size
    assert result["num_parameters"] == sum(p.numel() for p in loaded.parameters())
    assert result["threads"] == torch.get_num_threads()
    # two layers: four projections, a feed-forward block, scores and their use; a multiply-add is two
    length, width, inner = 64, 16, 32
    dense = 2 * length * (4 * width * width + 2 * width * inner)
    attention = 2 * 2 * length * length * width
    pooler = 0 if loaded.hf.base_model.pooler is None else 2 * width * width
    assert flops(loaded, length) == 2 * (dense + attention) + pooler


@pytest.mark.parametrize(
    ("tasks", "options", "message"),
    [
        (["sst2"], {}, "need their data"),
        (None, {}, "only a run knows its text: heldout"),
        (["heldout"], {}, "only a run knows its text: heldout"),
    ],
)
def test_what_a_folder_cannot_be_asked(model, tasks, options, message):
    with pytest.raises(UserError, match=message):
        ask(model, Request(tasks=tasks, **options))


def test_a_folder_of_nothing(tmp_path):
    with pytest.raises(UserError, match="no run directory and no model folder"):
        ask(tmp_path, Request())
