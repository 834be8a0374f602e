"""A run's student, and its teacher, on WikiText's raw text: perplexity (causal), or masked loss (MLM)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megadistill.core.errors import UserError
from megadistill.core.types import Batch
from megadistill.data.config import DataConfig
from megadistill.data.hashing import row_keys
from megadistill.data.masking import Mlm, Targets, Vocabulary
from megadistill.data.packing import PACKERS, Frame
from megadistill.data.tokenization import load_tokenizer
from megadistill.evaluate.heldout import BATCH_ROWS, score, totals
from megadistill.models.scoring import perplexity
from megadistill.models.signals import LanguageModel

NAMES = ("test.txt", "wiki.test.raw", "wiki.test.tokens")
_FIX = "give --wikitext FOLDER, with WikiText's raw test part in it"


def wikitext(folder: Path, data: DataConfig, student: LanguageModel, teacher: LanguageModel | None) -> dict[str, Any]:
    """Score the test part as one document, packed into rows as the run's own text (no sliding window: each token sees
    only what precedes it in its row, so perplexities are a little higher than with a stride).

    Args:
        folder: holds test.txt or wiki.test.raw.
        data: clm targets give perplexity; mlm the loss at masked positions, their choice fixed by seed 0.

    Returns:
        loss and perplexity per token, num_targets, and for clm `word_perplexity` over whitespace-separated words;
        the teacher's as `teacher_...`.

    Raises:
        UserError: no such file, or no text in it.
    """
    text = _text(folder)
    batches = list(_batches(text, data))
    if not batches:
        raise UserError(f"the text in {folder} is too short to score", f"{len(text)} characters", _FIX)

    def of(model: LanguageModel) -> dict[str, Any]:
        rows = score(model, batches)
        result: dict[str, Any] = totals(rows, with_teacher=False)
        if data.targets.kind == "clm":
            result["word_perplexity"] = perplexity(float(rows.nll.sum()) / len(text.split()))
        return result

    scores = of(student)
    return scores if teacher is None else scores | {f"teacher_{key}": value for key, value in of(teacher).items()}


def _text(folder: Path) -> str:
    path = next((folder / name for name in NAMES if (folder / name).exists()), None)
    if path is None:
        raise UserError(f"no WikiText test file in {folder}", f"looked for {', '.join(NAMES)}", _FIX)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as UTF-8", str(error), _FIX) from None
    if not text.strip():
        raise UserError(f"{path} is empty", "", _FIX)
    return text


def _batches(text: str, data: DataConfig) -> Iterator[Batch]:
    tokenizer = load_tokenizer(data.tokenizer)
    special = tokenizer.special
    frame = Frame(special.cls, special.sep, special.padding, tokenizer.sentence_ends)
    vocabulary = Vocabulary(tokenizer.vocabulary_size, special.mask, special.ids(), None, tokenizer.opens_word)
    targets = _even(data.targets)
    start = 0
    for tokens, segments in PACKERS[data.packing]([tokenizer.encode(text)], data.sequence_length, frame):
        for at in range(0, len(tokens), BATCH_ROWS):
            part, wide = tokens[at : at + BATCH_ROWS], segments[at : at + BATCH_ROWS].astype(np.int64)
            rows = np.arange(start, start + len(part), dtype=np.int64)
            keys = row_keys(0, "wikitext", "test", np.zeros_like(rows), rows)
            ids, labels = targets.apply(part, wide, keys, vocabulary)
            yield Batch(*(torch.from_numpy(a) for a in (ids, wide > 0, wide, labels, rows)))
            start += len(part)


def _even(targets: Targets) -> Targets:
    """The same targets without smoothing: it favours what is rare in one run's corpora, so scores of runs on other
    corpora would be of other tokens."""
    return targets.model_copy(update={"smoothing": None}) if isinstance(targets, Mlm) else targets
