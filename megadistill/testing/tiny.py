"""The smallest models and batches that still behave like real ones."""

from __future__ import annotations

from typing import Any

import torch

from megadistill.core.types import IGNORE, Batch
from megadistill.models.heads import TaskHead
from megadistill.models.loading import task_class
from megadistill.models.signals import LanguageModel

VOCABULARY, LENGTH, WIDTH = 61, 12, 16
CPU = torch.device("cpu")


FAMILIES = ("bert", "distilbert", "roberta", "albert", "modernbert", "gpt2", "llama", "qwen2", "qwen3")
CAUSAL = frozenset({"gpt2", "llama", "qwen2", "qwen3"})


def language_model(architecture: str = "bert", layers: int = 2, seed: int = 0, **config: Any) -> LanguageModel:
    """A model of two-digit sizes with dropout 0, the same for the same seed."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    auto = AutoModelForCausalLM if architecture in CAUSAL else AutoModelForMaskedLM
    fields = {"vocab_size": VOCABULARY, **_sizes(architecture, layers), **config}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LanguageModel(auto.from_config(AutoConfig.for_model(architecture, **fields)))


def task_model(architecture: str, head: TaskHead, layers: int = 2, seed: int = 0, **config: Any) -> LanguageModel:
    """Such a model with a task's head; its padding is token 0."""
    from transformers import AutoConfig

    fields = {"vocab_size": VOCABULARY, "pad_token_id": 0, **_sizes(architecture, layers), **head.config_fields()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LanguageModel(task_class(head).from_config(AutoConfig.for_model(architecture, **{**fields, **config})))


def _sizes(architecture: str, layers: int) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "num_hidden_layers": layers,
        "hidden_size": WIDTH,
        "num_attention_heads": 2,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": LENGTH,
    }
    encoder = {**usual, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    decoder = {**usual, "num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 0}
    return {
        "bert": encoder,
        "distilbert": {
            "n_layers": layers,
            "dim": WIDTH,
            "n_heads": 2,
            "hidden_dim": 2 * WIDTH,
            "max_position_embeddings": LENGTH,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
        # positions are counted from behind the padding id
        "roberta": {**encoder, "max_position_embeddings": LENGTH + 2, "pad_token_id": 1, "type_vocab_size": 1},
        "albert": {**encoder, "embedding_size": 8},
        # every other layer sees two positions to either side only
        "modernbert": {**usual, "pad_token_id": 0, "global_attn_every_n_layers": 2, "local_attention": 4},
        "gpt2": {
            "n_layer": layers,
            "n_embd": WIDTH,
            "n_head": 2,
            "n_positions": LENGTH,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        "llama": decoder,
        "qwen2": decoder,
        "qwen3": {**decoder, "head_dim": 8},
    }[architecture]


def batch(rows: int, seed: int = 0, ragged: bool = True) -> Batch:
    """Random rows of Zipf-like tokens; ragged ones have padding and uneven numbers of targets, a row may have none."""
    draw = torch.Generator().manual_seed(seed)
    ids = 5 + ((VOCABULARY - 5) * torch.rand(rows, LENGTH, generator=draw) ** 3).long()
    lengths = torch.randint(3, LENGTH + 1, (rows, 1), generator=draw) if ragged else torch.full((rows, 1), LENGTH)
    mask = torch.arange(LENGTH) < lengths
    targets = (torch.rand(rows, LENGTH, generator=draw) < 0.3) & mask
    labels = torch.where(targets, ids, IGNORE)
    return Batch(torch.where(mask, ids, 0), mask, mask.long(), labels, torch.arange(rows))


def images(rows: int, size: int, classes: int, seed: int = 0) -> Batch:
    """Noise with random classes."""
    draw = torch.Generator().manual_seed(seed)
    ones = torch.ones(rows, 1, dtype=torch.int64)
    labels = torch.randint(classes, (rows, 1), generator=draw)
    pixels = torch.randint(256, (rows, 3, size, size), generator=draw, dtype=torch.uint8)
    return Batch(ones * 0, ones.bool(), ones, labels, torch.arange(rows), pixels=pixels)


def packed(documents: list[list[int]], seed: int = 0) -> Batch:
    """Rows of several documents of the given lengths one after another, padded to LENGTH; no targets."""
    draw = torch.Generator().manual_seed(seed)
    segments = torch.zeros(len(documents), LENGTH, dtype=torch.int64)
    for row, lengths in zip(segments, documents, strict=True):
        numbers = torch.repeat_interleave(torch.arange(1, len(lengths) + 1), torch.tensor(lengths))
        row[: len(numbers)] = numbers
    ids = torch.randint(5, VOCABULARY, segments.shape, generator=draw).masked_fill(segments == 0, 0)
    return Batch(ids, segments > 0, segments, torch.full_like(ids, IGNORE), torch.arange(len(ids)))
