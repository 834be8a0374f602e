"""Does every published recipe learn? Each preset's objectives, student and teacher at a toy width, for 20 steps."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from megadistill.objectives.mixture import Mixture
from megadistill.objectives.step import DistillStep
from megadistill.run.config import load
from megadistill.teachers.ensemble import EnsembleSource
from megadistill.teachers.online import OnlineSource
from megadistill.testing import tiny

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FAMILY = {
    "distilbert": "bert",
    "distilbert_cased": "bert",
    "distilroberta": "roberta",
    "distilgpt2": "gpt2",
    "tinybert4_general": "bert",
    "tinybert6_general": "bert",
    "minilm_l6_h384": "bert",
    "causal_distilbert": "bert",
    "hinton": "bert",
    "ensemble": "bert",
    "co_distillation": "gpt2",
    "self_distillation": "gpt2",
    "llama_depth": "llama",
}
LATE = 10**6
"""A step after every ramp."""


def toy(name: str, width: int = 24) -> dict:
    """Fields that make a published architecture 24 wide; depths and heads stay."""
    return {
        "bert": {"hidden_size": width, "intermediate_size": 48, "num_attention_heads": 12},
        "roberta": {"hidden_size": width, "intermediate_size": 48, "num_attention_heads": 12},
        "gpt2": {"n_embd": width, "n_head": 12},
        "distilbert": {"dim": width, "hidden_dim": 48, "n_heads": 12, "dropout": 0.0, "attention_dropout": 0.0},
        "llama": {"hidden_size": width, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2},
    }[name] | {"initializer_range": 0.1}


class Recipe:
    """A preset's parts at toy size."""

    def __init__(self, preset: str) -> None:
        config = load(CONFIGS / f"{preset}.yaml")
        family, causal = FAMILY[preset], config.data.targets.kind == "clm"
        depth = 22 if family == "llama" else 12
        kind = config.teacher.kind
        if kind == "online":
            self.teacher = OnlineSource("toy", tiny.language_model(family, depth, seed=1, **toy(family)))
        elif kind == "ensemble":
            members = [
                OnlineSource("toy", tiny.language_model(family, depth, seed=s, **toy(family, s * 24))) for s in (1, 2)
            ]
            self.teacher = EnsembleSource(members, [0.5, 0.5])
        else:
            self.teacher = config.teacher.build(torch.device("cpu"))
        model = self.teacher.models[0] if self.teacher.models else None
        fields = dict(config.student.config)
        if "hidden_size" in fields:  # a width of its own: half of the teacher's where the published one is narrower
            fields |= {"hidden_size": 24 if fields["hidden_size"] == 768 else 12, "intermediate_size": 24}
        elif config.student.architecture is not None:
            fields |= toy(config.student.architecture) | {"max_position_embeddings": tiny.LENGTH}
        if config.student.architecture == "gpt2":
            fields |= {"n_positions": fields.pop("max_position_embeddings")}
            fields |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        student = config.student.model_copy(update={"config": fields}).build(model, tiny.VOCABULARY, causal, seed=3)
        self.teacher.attach(student)
        for one in (student, *self.teacher.models):
            one.attends = config.data.attends
        torch.manual_seed(0)
        losses = [objective.build(student.dims, self.teacher.dims) for objective in config.objectives]
        self.step = DistillStep(student, config.objectives, losses)
        self.batch = tiny.batch(6, seed=4)
        if causal:
            self.batch = type(self.batch)(
                self.batch.ids, self.batch.mask, self.batch.segments, next_tokens(self.batch), self.batch.rows
            )

    def loss(self) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(5)  # the same spans are exchanged at every step
        counts = self.batch.counts()
        return self.step(self.batch, self.teacher.signals(self.batch, self.step.needs), (1 / counts).float(), LATE)

    def train(self, steps: int) -> list[float]:
        """The objective before each step."""
        self.step.train()
        optimizer = torch.optim.AdamW([p for p in self.step.parameters() if p.requires_grad], lr=2e-3)
        trace = []
        for number in range(1, steps + 1):
            loss, _ = self.loss()
            trace.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.teacher.after_step(number, self.step.student)
        return trace

    def trained_without(self, label: str | None) -> torch.Tensor:
        """The student after two steps without one of the objectives; what was learnt is forgotten again."""
        modules, mixture = [self.step, *self.teacher.models], self.step.mixture
        before = [copy.deepcopy(module.state_dict()) for module in modules]
        self.step.mixture = Mixture([part for part in mixture.parts if part.label != label])
        self.train(2)
        student = torch.cat([p.detach().flatten() for p in self.step.student.parameters()])
        self.step.mixture = mixture
        for module, state in zip(modules, before, strict=True):
            module.load_state_dict(state)
        return student

    def gradients(self) -> dict[str, float]:
        """The norm of each objective's own gradient with respect to everything that learns."""
        learning = [p for p in self.step.parameters() if p.requires_grad]
        shares = (1 / self.batch.counts()).float()
        result = {}
        for part in self.step.mixture.parts:
            torch.manual_seed(5)
            ours = self.step.student.signals(
                self.batch, self.step.needs.student_hidden, self.step.needs.student_attention
            )
            theirs = self.teacher.signals(self.batch, self.step.needs)
            term = part.loss(ours, theirs, self.batch)
            grads = torch.autograd.grad(shares[0] * term.sum, learning, allow_unused=True)
            result[part.label] = float(sum(g.square().sum() for g in grads if g is not None)) ** 0.5
        return result


def next_tokens(batch):
    labels = torch.full_like(batch.ids, -100)
    follows = batch.mask[:, 1:] & batch.mask[:, :-1]
    labels[:, :-1][follows] = batch.ids[:, 1:][follows]
    return labels


@pytest.mark.parametrize("preset", FAMILY)
def test_a_recipe_learns_and_every_term_of_it_counts(preset, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    recipe = Recipe(preset)
    if preset == "co_distillation":  # the peer that is not there yet: another student
        recipe.teacher.models = (tiny.language_model("gpt2", 6, seed=9, **toy("gpt2")).eval().requires_grad_(False),)
    labels = [o.label for o in load(CONFIGS / f"{preset}.yaml").objectives]
    whole = recipe.trained_without(None)
    for label in labels if len(labels) > 1 else ():
        assert not torch.equal(recipe.trained_without(label), whole), label
    trace = recipe.train(20)
    assert trace[-1] < 0.97 * trace[0], trace
    norms = recipe.gradients()
    assert set(norms) == set(labels)
    assert min(norms.values()) > 1e-5, norms


def test_every_recipe_of_the_field_is_here():
    assert all((CONFIGS / f"{name}.yaml").exists() for name in FAMILY)
