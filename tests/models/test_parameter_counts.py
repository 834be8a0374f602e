"""Published sizes: the presets' students and teachers have exactly as many parameters as the papers' models."""

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    DeiTForImageClassificationWithTeacher,
)

from megadistill.core.types import Dims
from megadistill.models.signals import LanguageModel
from megadistill.objectives.hidden_mse import HiddenMSE
from megadistill.run.config import load


def count(auto, architecture, **config):
    with torch.device("meta"):
        config = AutoConfig.for_model(architecture, **config)
        model = auto.from_config(config) if hasattr(auto, "from_config") else auto(config)
        return sum(p.numel() for p in model.parameters())


def bert(layers, width=768, inner=3072, **fields):
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": inner}
    return ("bert", {**sizes, "num_attention_heads": 12 if width % 12 == 0 else 8, **fields})


ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}


@pytest.mark.parametrize(
    ("auto", "model", "parameters"),
    [
        (AutoModel, bert(12), 109_482_240),
        (AutoModelForMaskedLM, bert(12), 109_514_298),
        (AutoModel, bert(24, 1024, 4096, num_attention_heads=16), 335_141_888),
        (AutoModel, ("distilbert", {}), 66_362_880),
        (AutoModelForMaskedLM, ("distilbert", {}), 66_985_530),
        (AutoModel, ("distilbert", {"vocab_size": 28996}), 65_190_912),
        (AutoModel, ("distilbert", {"vocab_size": 119547}), 134_734_080),
        (AutoModel, ("distilbert", {"n_layers": 3}), 45_099_264),
        (AutoModel, bert(6), 66_955_008),
        (AutoModel, bert(3), 45_691_392),
        (AutoModel, bert(4), 52_779_264),
        (AutoModel, bert(4, 312, 1200), 14_350_248),
        (AutoModel, bert(4, 512, 2048), 28_763_648),
        (AutoModel, bert(6, 384, 1536), 22_713_216),
        (AutoModel, bert(12, 384, 1536), 33_360_000),
        (AutoModelForCausalLM, ("gpt2", {}), 124_439_808),
        (AutoModelForCausalLM, ("gpt2", {"n_layer": 6}), 81_912_576),
        (AutoModelForMaskedLM, ("roberta", ROBERTA), 124_697_433),
        (AutoModelForMaskedLM, ("roberta", {**ROBERTA, "num_hidden_layers": 6}), 82_170_201),
    ],
)
def test_published_models(auto, model, parameters):
    assert count(auto, model[0], **model[1]) == parameters


@pytest.mark.parametrize(
    ("width", "heads", "parameters", "told"),
    [(192, 3, 5_910_800, 6), (384, 6, 22_436_432, 22), (768, 12, 87_338_192, 87)],
)
def test_deit_with_both_heads(width, heads, parameters, told):
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": 4 * width, "num_labels": 1000}
    assert count(DeiTForImageClassificationWithTeacher, "deit", **sizes) == parameters
    assert round(parameters / 1e6) == told  # the paper's million


def test_tinybert_with_its_projection():
    loss = HiddenMSE(kind="hidden_mse").build(Dims(4, 312, 30522, 12), Dims(12, 768, 30522, 12))
    assert 14_350_248 + sum(p.numel() for p in loss.parameters()) == 14_590_632


def test_relations_that_the_papers_state():
    assert pytest.approx(0.60, abs=0.01) == 66_362_880 / 109_482_240  # "40 % smaller"
    assert pytest.approx(1 / 7.5, abs=0.005) == 14_350_248 / 109_482_240  # "7.5x smaller"


TEACHERS = {
    "google-bert/bert-base-uncased": bert(12),
    "google-bert/bert-base-cased": bert(12, vocab_size=28996),
    "FacebookAI/roberta-base": ("roberta", ROBERTA),
    "openai-community/gpt2": ("gpt2", {}),
    "TinyLlama/TinyLlama_v1.1": (
        "llama",
        {
            "num_hidden_layers": 22,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
        },
    ),
}
"""Published configs of the models whose tokenizers the presets use."""


@pytest.mark.parametrize(
    ("preset", "parameters"),
    [
        ("distilbert", 66_985_530),
        ("distilbert_cased", 65_812_036),
        ("distilroberta", 82_170_201),
        ("distilgpt2", 81_912_576),
        ("tinybert4_general", 14_381_394),
        ("tinybert6_general", 66_987_066),
        ("minilm_l6_h384", 22_744_506),
        ("causal_distilbert", 66_985_530),
        ("hinton", 66_985_530),
        ("ensemble", 66_985_530),
        ("co_distillation", 81_912_576),
        ("self_distillation", 81_912_576),
        ("llama_depth", 615_561_216),
    ],
)
def test_preset_students(preset, parameters, monkeypatch):
    """As the presets' own builder makes them, vocabulary head and all."""
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    config = load(Path("configs") / f"{preset}.yaml")
    architecture, fields = TEACHERS[config.data.tokenizer]
    causal = config.data.targets.kind == "clm"
    with torch.device("meta"):
        auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
        teacher = LanguageModel(auto.from_config(AutoConfig.for_model(architecture, **fields)))
    student = config.student.empty(teacher, teacher.num_tokens, causal)
    assert sum(p.numel() for p in student.parameters()) == parameters
