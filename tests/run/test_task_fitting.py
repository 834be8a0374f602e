"""What `validate` finds out about a task's run: its models by their sizes, its files where they are here."""

import json

import pytest
import yaml

from megadistill.core.errors import UserError
from megadistill.models.heads import TaskHead
from megadistill.run.config import load
from megadistill.run.fitting import misfits
from megadistill.testing import image_files, task_files, tiny

HEADS = {"label": TaskHead("label", 2), "three": TaskHead("label", 3), "value": TaskHead("value", 1)}
HEADS |= {"span": TaskHead("span", 2), "choice": TaskHead("choice", 4)}
HARD = {"kind": "hard_ce"}
SOFT = {"kind": "soft_ce", "scope": "targets"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Teachers of 4 layers, width 16 and 32 positions that are nothing but a config.json; and configs of runs."""
    folder = tmp_path_factory.mktemp("tasks")
    words = len((task_files.tokenizer(folder / "tokenizer") / "vocab.txt").read_text().split())
    sizes = {"vocab_size": words, "max_position_embeddings": 32}
    models = {name: tiny.task_model("bert", head, 4, **sizes) for name, head in HEADS.items()}
    for name, model in {**models, "tokens": tiny.language_model("bert", 2, **sizes)}.items():
        model.hf.config.architectures = [type(model.hf).__name__]
        model.hf.config.save_pretrained(folder / name)
    glue = str(task_files.stsb(task_files.sst2(folder / "glue")))
    squad, race = task_files.squad(folder / "squad"), task_files.race(folder / "race")
    images = [str(image_files.folder(folder / "images" / part, 12, seed)) for seed, part in enumerate(("train", "dev"))]
    tsv = {part: [str(folder / "glue" / "SST-2" / f"{part}.tsv")] for part in ("train", "dev")}
    pkd, attention = {"kind": "pkd"}, {"kind": "attention_mse", "layers": {1: 2, 2: 4}}
    runs = {
        "sst2": ("label", {"kind": "glue", "name": "sst2", "folder": glue}, [HARD, SOFT, pkd, attention]),
        "stsb": ("value", {"kind": "glue", "name": "stsb", "folder": glue}, [{"kind": "value_mse"}]),
        "text": ("label", {"kind": "text", **tsv, "text": "sentence"}, [HARD, SOFT]),
        "squad": ("span", {"kind": "squad", **squad, "max_question": 8, "stride": 8}, [{"kind": "span_soft_ce"}]),
        "race": ("choice", {"kind": "race", "folder": str(race)}, [HARD, SOFT]),
        "bilstm": ("label", {"kind": "glue", "name": "sst2", "folder": glue}, [{**SOFT, "kind": "logits_mse"}]),
        "images": (None, {"kind": "image", "train": images[:1], "dev": images[1:], "image_size": 32}, [HARD]),
    }
    student = {"kind": "hf", "config": {"num_hidden_layers": 2}, "init": {"kind": "teacher_layers", "layers": [0, 1]}}
    deit = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
    students = {"bilstm": {"kind": "bilstm", "embeddings": "teacher"}}
    students["images"] = {"kind": "hf", "architecture": "deit", "config": deit}
    of_text = {"tokenizer": str(folder / "tokenizer"), "sequence_length": 32}
    for name, (teacher, task, objectives) in runs.items():
        tree = {
            "name": name,
            "task": json.loads(json.dumps(task, default=str)) | (of_text if teacher else {}),
            "teacher": teacher and {"kind": "online", "path": str(folder / teacher)},
            "student": students.get(name, student),
            "objectives": objectives,
            "batch": {"global_size": 8, "micro_size": 4},
            "train": {"steps": 20},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    return folder


def told(folder, name, *changes):
    problems, _ = misfits(load(folder / f"{name}.yaml", [change.replace("HERE", str(folder)) for change in changes]))
    return [str(problem) for problem in problems]


@pytest.mark.parametrize("name", ["sst2", "stsb", "text", "squad", "race", "bilstm", "images"])
def test_what_fits_is_not_complained_of(folder, name):
    assert told(folder, name) == []


RANDOM = "student.init={kind: random}"


@pytest.mark.parametrize(
    ("name", "changes", "start"),
    [
        ("sst2", ["objectives.2.layers={1: 9}"], "objectives.2.layers (pkd): there is no teacher layer 9"),
        ("sst2", ["objectives.3.layers={1: 5}"], "objectives.3.layers (attention_mse): there is no teacher layer 5"),
        (
            "sst2",
            ["student.config={hidden_size: 8}", RANDOM],
            "objectives.2 (pkd): the teacher's states have 16 values",
        ),
        (
            "sst2",
            ["student.config={num_hidden_layers: 3}", RANDOM],
            "objectives.2.layers (pkd): the teacher's 4 layers",
        ),
        ("sst2", ["student.init.layers=[0, 9]"], "student.init.layers names layer(s) [9]"),
        (
            "sst2",
            ["student={kind: hf, init: {kind: folder, path: HERE/glue}}"],
            "student: HERE/glue is no model folder",
        ),
        ("sst2", ["teacher.path=HERE/three"], "teacher: BertForSequenceClassification has no head for this task"),
        ("sst2", ["teacher.path=HERE/tokens"], "teacher: BertForMaskedLM has no head for this task"),
        (
            "stsb",
            ["teacher.path=HERE/label", "objectives.0.kind=logits_mse", "objectives.0.scope=targets"],
            "teacher: ",
        ),
        ("squad", ["teacher.path=HERE/label"], "teacher: BertForSequenceClassification has no head for this task"),
        ("race", ["teacher.path=HERE/label"], "teacher: BertForSequenceClassification has no head for this task"),
        (
            "sst2",
            ["task.sequence_length=64"],
            "task.sequence_length: it is 64, and the student knows only 32 positions",
        ),
        ("sst2", ["student.architecture=brt", RANDOM], "student.architecture: transformers knows no model type 'brt'"),
        ("images", ["objectives.0.head=class", "student.architecture=vit"], "objectives.0.head (hard_ce): the student"),
        ("images", ["student.config.image_size=64"], "student: DeiTForImageClassificationWithTeacher"),
        (
            "images",
            ["student={kind: hf, architecture: resnet}"],
            "the student (ResNetForImageClassification) normalises",
        ),
    ],
)
def test_what_only_sizes_tell_is_told_with_its_field(folder, name, changes, start):
    problems = told(folder, name, *changes)
    assert any(problem.startswith(start.replace("HERE", str(folder))) for problem in problems), problems
    assert all("fix: " in problem for problem in problems)


@pytest.mark.parametrize(
    ("name", "changes", "parts"),
    [
        ("sst2", ["task.folder=HERE/gleu"], ["task.folder: HERE/gleu has no train set of sst2", "there is HERE/glue"]),
        ("sst2", ["task.train_file=trian.tsv"], ["no train set of sst2", "there is HERE/glue/SST-2/train.tsv"]),
        ("text", ["task.label=lable"], ["task.label: ", "has no column 'lable'", "did you mean 'label'?"]),
        ("text", ["task.text=words"], ["task.text: ", "it has sentence, label"]),
        ("text", ["task.pair=second"], ["task.pair: ", "has no column 'second'"]),
        ("text", ["task.dev=[HERE/glue/SST-2/tset*.tsv]"], ["task.dev: no file HERE/glue/SST-2/tset*.tsv"]),
        ("squad", ["task.train=HERE/squad/trian.json"], ["task.train: no file", "there is HERE/squad/train.json"]),
        ("race", ["task.folder=HERE/glue"], ["no train set of RACE", "no dev set of RACE", "no test set of RACE"]),
        ("images", ["task.train=[HERE/images/trian]"], ["task.train: no file", "there is HERE/images/train"]),
        ("images", ["task.labels=[red, blue]"], ["task.labels: ", "that is not among them"]),
        ("sst2", ["student={kind: bilstm, embeddings: vectors, vectors: HERE/none.txt}"], ["student.vectors: no file"]),
    ],
)
def test_files_that_are_not_what_they_must_be_are_told_with_their_field(folder, name, changes, parts):
    objectives = ["objectives=[{kind: hard_ce}]"] if "bilstm" in changes[0] else []
    text = "\n".join(told(folder, name, *changes, *objectives))
    for part in parts:
        assert part.replace("HERE", str(folder)) in text, text


def test_a_folder_without_its_dev_file(folder, tmp_path):
    (tmp_path / "train.tsv").write_text((folder / "glue" / "SST-2" / "train.tsv").read_text())
    (problem,) = told(folder, "sst2", f"task.folder={tmp_path}")
    assert problem.startswith(f"task.folder: {tmp_path} has no dev set of sst2")


def test_data_and_sizes_are_told_at_once_and_each_thing_once(folder):
    problems = told(
        folder, "sst2", "task.train_file=none.tsv", "objectives.2.layers={1: 9}", "objectives.3.layers={9: 1}"
    )
    assert [problem.partition(":")[0] for problem in problems] == [
        "task.folder",
        "objectives.2.layers (pkd)",
        "objectives.3.layers (attention_mse)",
    ]
    names = [name for problem in told(folder, "text", "task.label=lable") if (name := problem.splitlines()[0])]
    assert [name.rpartition("/")[2] for name in names] == [
        "train.tsv has no column 'lable'",
        "dev.tsv has no column 'lable'",
    ]


def test_what_is_on_another_machine_is_remarked_upon(folder):
    problems, remarks = misfits(
        load(folder / "sst2.yaml", ["task.folder=/nowhere/glue", f"teacher.path={folder}/lable"])
    )
    assert problems == []
    assert "not looked at: task.folder /nowhere/glue: not on this machine" in remarks
    assert f"not compared with the teacher {folder}/lable: it is not here yet (there is {folder}/label)" in remarks


@pytest.mark.parametrize("kind", ["hidden_mse", "attention_mse", "cosine", "pkd"])
def test_a_student_without_layers_cannot_learn_by_them(folder, kind):
    with pytest.raises(UserError, match=rf"objectives\.0 \({kind}\): it cannot teach student \(bilstm\): .*logits_mse"):
        load(folder / "bilstm.yaml", [f"objectives=[{{kind: {kind}}}]"])
