"""The smallest models and batches that still behave like real ones."""

from __future__ import annotations

from typing import Any

import torch

from megadistill.core.types import IGNORE, Batch
from megadistill.models.signals import LanguageModel

VOCABULARY, LENGTH, WIDTH = 61, 12, 16
CPU = torch.device("cpu")


def language_model(architecture: str = "bert", layers: int = 2, seed: int = 0, **config: Any) -> LanguageModel:
    """A model of two-digit sizes with dropout 0, the same for the same seed."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    causal = architecture == "gpt2"
    sizes: dict[str, Any] = {
        "bert": {
            "num_hidden_layers": layers,
            "hidden_size": WIDTH,
            "num_attention_heads": 2,
            "intermediate_size": 2 * WIDTH,
            "max_position_embeddings": LENGTH,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        "distilbert": {
            "n_layers": layers,
            "dim": WIDTH,
            "n_heads": 2,
            "hidden_dim": 2 * WIDTH,
            "max_position_embeddings": LENGTH,
            "dropout": 0.0,
            "attention_dropout": 0.0,
        },
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
    }[architecture]
    auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LanguageModel(
            auto.from_config(AutoConfig.for_model(architecture, **{"vocab_size": VOCABULARY, **sizes, **config}))
        )


def batch(rows: int, seed: int = 0, ragged: bool = True) -> Batch:
    """Random rows of Zipf-like tokens; ragged ones have padding and uneven numbers of targets, a row may have none."""
    draw = torch.Generator().manual_seed(seed)
    ids = 5 + ((VOCABULARY - 5) * torch.rand(rows, LENGTH, generator=draw) ** 3).long()
    lengths = torch.randint(3, LENGTH + 1, (rows, 1), generator=draw) if ragged else torch.full((rows, 1), LENGTH)
    mask = torch.arange(LENGTH) < lengths
    targets = (torch.rand(rows, LENGTH, generator=draw) < 0.3) & mask
    labels = torch.where(targets, ids, IGNORE)
    return Batch(torch.where(mask, ids, 0), mask, mask.long(), labels, torch.arange(rows))
