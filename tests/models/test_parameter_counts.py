"""Published sizes: the presets' students and teachers have exactly as many parameters as the papers' models."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from megadistill.run.config import load


def count(auto, architecture, **config):
    with torch.device("meta"):
        return sum(p.numel() for p in auto.from_config(AutoConfig.for_model(architecture, **config)).parameters())


@pytest.mark.parametrize(
    ("auto", "architecture", "parameters"),
    [(AutoModelForMaskedLM, "bert", 109_514_298), (AutoModelForCausalLM, "gpt2", 124_439_808)],
)
def test_teachers(auto, architecture, parameters):
    assert count(auto, architecture) == parameters


@pytest.mark.parametrize(
    ("preset", "auto", "parameters"),
    [("distilbert", AutoModelForMaskedLM, 66_985_530), ("distilgpt2", AutoModelForCausalLM, 81_912_576)],
)
def test_preset_students(preset, auto, parameters, monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    config = load(Path("configs") / f"{preset}.yaml")
    vocabulary = {"distilbert": 30522, "distilgpt2": 50257}[preset]
    assert count(auto, config.student.architecture, vocab_size=vocabulary, **config.student.config) == parameters
