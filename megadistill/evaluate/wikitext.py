"""A language model on WikiText's raw text: perplexity (causal), or masked loss (MLM)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from megadistill.core.errors import UserError
from megadistill.core.types import Batch
from megadistill.data.hashing import row_keys
from megadistill.data.masking import Targets, Vocabulary
from megadistill.data.packing import Frame, concat
from megadistill.data.tokenization import Tokenizer
from megadistill.evaluate.heldout import BATCH_ROWS, score, totals
from megadistill.models.scoring import perplexity
from megadistill.models.signals import LanguageModel

NAMES = ("test.txt", "wiki.test.raw", "wiki.test.tokens")


def wikitext(folder: Path, model: LanguageModel, tokenizer: Tokenizer, targets: Targets, length: int) -> dict[str, Any]:
    """Score the test part, cut into rows of `length` tokens one after another (no sliding window: each token sees
    only what precedes it in its row, so perplexities are a little higher than with a stride).

    Args:
        folder: holds test.txt or wiki.test.raw.
        targets: clm gives perplexity; mlm the loss at masked positions, their choice fixed by seed 0.

    Returns:
        loss and perplexity per token, num_targets, and for clm `word_perplexity` over whitespace-separated words.

    Raises:
        UserError: no such file.
    """
    path = next((folder / name for name in NAMES if (folder / name).exists()), None)
    if path is None:
        raise UserError(
            f"no WikiText test file in {folder}", f"looked for {', '.join(NAMES)}", "give --wikitext FOLDER"
        )
    text = path.read_text(encoding="utf-8")
    special = tokenizer.special
    frame = Frame(special.cls, special.sep, special.padding)
    vocabulary = Vocabulary(tokenizer.vocabulary_size, special.mask, special.ids(), None)
    batches = []
    start = 0
    for tokens, segments in concat([tokenizer.encode(text)], length, frame):
        for at in range(0, len(tokens), BATCH_ROWS):
            part, wide = tokens[at : at + BATCH_ROWS], segments[at : at + BATCH_ROWS].astype(np.int64)
            rows = np.arange(start, start + len(part), dtype=np.int64)
            keys = row_keys(0, "wikitext", "test", np.zeros_like(rows), rows)
            ids, labels = targets.apply(part, wide, keys, vocabulary)
            batches.append(Batch(*(torch.from_numpy(a) for a in (ids, wide > 0, wide, labels, rows))))
            start += len(part)
    table = score(model, None, batches)
    result = totals(table, with_teacher=False)
    if targets.kind == "clm":
        result["word_perplexity"] = perplexity(float(table.nll.sum()) / len(text.split()))
    return result
