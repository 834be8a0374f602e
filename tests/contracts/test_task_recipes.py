"""Does every task recipe learn? Each one's objectives, student and teacher at a toy width, on made task data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megadistill.models.heads import TaskHead
from megadistill.models.initialize import Folder
from megadistill.models.loading import save_pretrained
from megadistill.models.students.hf import HFStudent
from megadistill.objectives.step import DistillStep
from megadistill.run.config import load
from megadistill.run.fitting import check_answers
from megadistill.tasks.rows import TaskRows
from megadistill.teachers.ensemble import EnsembleSource
from megadistill.teachers.online import OnlineSource
from megadistill.testing import image_files, task_files, tiny

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = sorted(path.stem for path in (CONFIGS / "tasks").glob("*.yaml"))
ON_IMAGES = [recipe for recipe in RECIPES if load(CONFIGS / "tasks" / f"{recipe}.yaml").task.asks == "image"]
TOY = {"hidden_size": 24, "intermediate_size": 48, "num_attention_heads": 12, "max_position_embeddings": 64}
TOY |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.15}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    task_files.sst2(folder / "glue")
    task_files.stsb(folder / "glue")
    task_files.qqp(folder / "glue")
    task_files.imdb(folder / "imdb")
    task_files.race(folder / "race")
    squad = task_files.squad(folder / "squad")
    task_files.vectors(folder / "vectors.txt")
    task_files.tagger(folder / "tagger")
    words = len((task_files.tokenizer(folder / "tokenizer") / "vocab.txt").read_text().split())
    model = tiny.language_model("bert", vocab_size=words, max_position_embeddings=64)
    save_pretrained(model, folder / "model", {name: p.detach() for name, p in model.named_parameters()})
    return folder, {"tokenizer": str(task_files.tokenizer(folder / "tokenizer"))}, squad


def assignments(recipe, data):
    folder, common, squad = data
    task = load(CONFIGS / "tasks" / f"{recipe}.yaml").task
    kind, augment = task.kind, getattr(task.augment, "kind", "")
    given = {"tokenizer": common["tokenizer"], "sequence_length": 32}
    given |= {"train": squad["train"], "dev": squad["dev"], "max_question": 8, "stride": 8} if kind == "squad" else {}
    given |= {"folder": folder / kind} if kind != "squad" else {}
    given |= {"augment.cache": folder / "augmented"} if augment else {}
    given |= {"augment.tagger": folder / "tagger"} if augment == "tang" else {}
    if augment == "tinybert":
        given |= {"augment.language_model": folder / "model", "augment.vectors": folder / "vectors.txt"}
        given |= {"augment.tokenizer": common["tokenizer"]}
    return [f"task.{name}={value}" for name, value in given.items()]


def toy_model(layers, head, words, seed, width=24):
    fields = TOY | {"hidden_size": width, "intermediate_size": 2 * width}
    return tiny.task_model("bert", head, layers, seed, vocab_size=words, **fields)


class Recipe:
    """A recipe's parts at toy size."""

    def __init__(self, recipe, data):
        config = load(CONFIGS / "tasks" / f"{recipe}.yaml", assignments(recipe, data))
        opened = config.task.open("train")
        rows = TaskRows(opened.encoded, config.task.sequence_length)
        self.batch = rows.take(np.array([*range(8), *range(-4, 0)]) % len(opened.encoded))
        assert (self.batch.unanswered is not None) == (config.task.augment is not None)
        head: TaskHead = config.task.head
        words = len((Path(config.task.tokenizer) / "vocab.txt").read_text().split())
        self.teacher = None
        mapped = any(hasattr(o, "layers") for o in config.objectives)
        depth = 12 if mapped else 2
        if config.teacher is not None:
            members = [OnlineSource("toy", toy_model(depth, head, words, seed)) for seed in (1, 2, 3)]
            ensemble = config.teacher.kind == "ensemble"
            self.teacher = EnsembleSource(members, [1 / 3] * 3) if ensemble else members[0]
        student = config.student
        if student.kind == "hf":
            tiny4 = "tinybert" in recipe
            assert isinstance(student.init, Folder)
            depth = 4 if tiny4 else student.config.get("num_hidden_layers", 6)
            model = toy_model(depth, head, words, 7, 12 if tiny4 else 24)
        else:
            assert self.teacher is not None
            model = student.build(self.teacher.models[0], words, False, 7, head=head)
        check_answers(head, model, self.teacher.models if self.teacher else ())
        model.check_head()
        objectives = config.objectives
        dims = self.teacher.dims if self.teacher is not None else None
        torch.manual_seed(0)
        self.step = DistillStep(model, objectives, [o.build(model.dims, dims) for o in objectives])

    def loss(self):
        teacher = self.teacher.signals(self.batch, self.step.needs) if self.teacher is not None else None
        return self.step(self.batch, teacher, (1 / self.batch.counts().clamp(min=1)).float(), 10**6)

    def gradients(self):
        """The norm of each objective's own gradient with respect to everything that learns."""
        learning = [p for p in self.step.parameters() if p.requires_grad]
        needs, result = self.step.needs, {}
        theirs = self.teacher.signals(self.batch, needs) if self.teacher is not None else None
        for part in self.step.mixture.parts:
            ours = self.step.student.signals(self.batch, needs.student_hidden, needs.student_attention)
            term = part.loss(ours.of(part.head), theirs, self.batch)
            grads = torch.autograd.grad(term.sum, learning, allow_unused=True)
            result[part.label] = float(sum(g.square().sum() for g in grads if g is not None)) ** 0.5
        return result

    def train(self, steps):
        optimizer = torch.optim.AdamW([p for p in self.step.parameters() if p.requires_grad], lr=3e-3)
        trace = []
        for _ in range(steps):
            loss, _ = self.loss()
            trace.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return trace


class ImageRecipe(Recipe):
    """A recipe on images likewise."""

    def __init__(self, recipe, data):
        pattern = image_files.shards(data[0] / recipe, 24, 0)
        given = [f'task.train=["{pattern}"]', f'task.dev=["{pattern}"]', "task.image_size=32"]
        given += [f"task.labels={json.dumps(image_files.NAMES)}"]
        toy = {"hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "patch_size": 8}
        given += [f"student.config.{name}={size}" for name, size in toy.items()]
        config = load(CONFIGS / "tasks" / f"{recipe}.yaml", given)
        rows = config.task.open("train").rows
        self.batch = rows.batch(rows.order(0, []).locate(np.arange(12)), 0, "targets")
        head = config.task.head
        teacher = HFStudent(kind="hf", architecture="vit", config={**toy, "num_attention_heads": 3})
        self.teacher = OnlineSource("toy", teacher.build(None, 0, False, 1, {}, head))
        student = config.student.build(None, 0, False, 7, {}, head)
        check_answers(head, student, self.teacher.models)
        student.check_head()
        objectives = config.objectives
        losses = [o.build(student.dims, self.teacher.dims) for o in objectives]
        self.step = DistillStep(student, objectives, losses)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_learns_and_every_term_of_it_counts(recipe, data):
    one = (ImageRecipe if recipe in ON_IMAGES else Recipe)(recipe, data)
    norms = one.gradients()
    assert set(norms) == {o.label for o in load(CONFIGS / "tasks" / f"{recipe}.yaml").objectives}
    assert min(norms.values()) > 1e-6, norms
    trace = one.train(8)
    assert min(trace[-2:]) < 0.99 * trace[0], trace


def test_a_published_result_stands_beside_every_recipe_and_every_kind_of_task_has_one():
    asked = set()
    for recipe in RECIPES:
        path = CONFIGS / "tasks" / f"{recipe}.yaml"
        header = [line for line in path.read_text().splitlines() if line.startswith("#")]
        assert any("expected:" in line and "published" in line for line in header), recipe
        asked.add(load(path).task.asks)
    assert asked == {"label", "value", "span", "choice", "image"}
