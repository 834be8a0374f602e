"""A folder with everything a tiny run needs: real text, a tokenizer trained on it, a teacher, and a config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

VOCABULARY = 300
LENGTH = 32


def text() -> list[str]:
    """Paragraphs of the Python language reference, which every installation carries."""
    from pydoc_data.topics import topics

    return [p for _, topic in sorted(topics.items()) for p in topic.split("\n\n") if len(p) > 80]


def make(folder: Path, causal: bool = False, **overrides: Any) -> Path:
    """Write corpus, tokenizer, teacher and config into `folder`; returns the config's path.

    Args:
        folder: existing, empty.
        causal: a GPT-2 pair with clm targets instead of a BERT pair with mlm.
        overrides: top-level config sections to replace.
    """
    (folder / "corpus.txt").write_text("\n\n".join(text()[:600]), encoding="utf-8")
    _tokenizer(folder / "tokenizer")
    _teacher(folder / "teacher", causal)
    config: dict[str, Any] = {
        "name": "tiny",
        "directory": str(folder / "runs"),
        "data": {
            "dir": str(folder / "prepared"),
            "corpora": [{"kind": "text", "files": [str(folder / "corpus.txt")], "document": "paragraph"}],
            "tokenizer": str(folder / "tokenizer"),
            "sequence_length": LENGTH,
            "targets": {"kind": "clm" if causal else "mlm"},
            "held_out": {"fraction": 0.1},
        },
        # its weights are random: it would not pass
        "teacher": {"kind": "online", "path": str(folder / "teacher"), "guard": {"max_loss": None}},
        "student": {
            "kind": "hf",
            "config": {"n_layer": 1} if causal else {"num_hidden_layers": 1},
            "init": {"kind": "teacher_layers", "layers": [1]},
        },
        "objectives": [
            {"kind": "soft_ce", "weight": 5, "temperature": 2},
            {"kind": "hard_ce", "weight": 2},
            {"kind": "cosine", "weight": 1},
        ],
        "batch": {"global_size": 16, "micro_size": 4},
        "optimizer": {"learning_rate": 1.0e-3},
        "train": {"steps": 12, "timeout_seconds": 120},
        "checkpoint": {"every_steps": 6},
        "evaluate": {"rows": 16},
        "log": {"every_steps": 4, "hash_every_steps": 1, "tensorboard": False},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump({**config, **overrides}, sort_keys=False), encoding="utf-8")
    return path


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    backend.train_from_iterator(text()[:600], trainer)
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))


def _teacher(folder: Path, causal: bool) -> None:
    from megadistill.models.loading import save_pretrained
    from megadistill.testing import tiny

    sizes: dict[str, Any] = {"vocab_size": VOCABULARY}
    if causal:
        sizes |= {"n_positions": LENGTH, "resid_pdrop": 0.1, "attn_pdrop": 0.1, "embd_pdrop": 0.1}
    else:
        sizes |= {"max_position_embeddings": LENGTH}
        sizes |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    model = tiny.language_model("gpt2" if causal else "bert", layers=2, seed=1, **sizes)
    save_pretrained(model, folder, {name: p.detach() for name, p in model.named_parameters()})
