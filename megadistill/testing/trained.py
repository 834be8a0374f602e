"""The small trained teacher that ships with the project, and text it can read: where a random model would not do."""

from __future__ import annotations

from functools import cache

import torch

from megadistill.core.files import shipped
from megadistill.core.types import IGNORE, Batch
from megadistill.models.loading import load_pretrained
from megadistill.models.signals import LanguageModel
from megadistill.testing.workspace import text

FOLDER = "megadistill/assets/quickstart_teacher"


def teacher() -> LanguageModel:
    """A GPT-2 of 6 layers, width 128 and 4,096 tokens, in evaluation mode."""
    return load_pretrained(shipped(FOLDER)).eval()


def batch(num_rows: int, length: int = 64) -> Batch:
    """Rows of Python's own documentation with next-token labels."""
    ids = _ids()[: num_rows * length].view(num_rows, length)
    labels = torch.cat([ids[:, 1:], torch.full((num_rows, 1), IGNORE)], dim=1)
    whole = torch.ones_like(ids)
    return Batch(ids, whole.bool(), whole, labels, torch.arange(num_rows))


@cache
def _ids() -> torch.Tensor:
    from megadistill.data.tokenization import load_tokenizer

    tokenizer = load_tokenizer(shipped(FOLDER))
    return torch.tensor([token for paragraph in text()[:300] for token in tokenizer.encode(paragraph)])
