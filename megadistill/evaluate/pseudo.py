"""How likely a masked language model finds each token of a text, given all others: pseudo-perplexity."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from megadistill.core.errors import UserError
from megadistill.core.types import IGNORE, Batch
from megadistill.data.masking import I64
from megadistill.data.tokenization import load_tokenizer
from megadistill.evaluate.heldout import score
from megadistill.evaluate.wikitext import Cutting, packed, read_text, refuse_other_tokenizer, vocabulary_of
from megadistill.models.scoring import perplexity
from megadistill.teachers.base import Source

ROWS = 64
"""Of the text, if no other number is asked for: a row costs as many passes over it as it has tokens."""
LONGEST = 128
"""Tokens of a row."""
AT_ONCE = 64
"""Copies of a row in one batch."""


def pseudo_perplexity(
    folder: Path, data: Cutting, student: Source, teacher: Source | None, rows: int | None = None
) -> dict[str, Any]:
    """exp of the mean of -log p(token | its row with that token alone masked) over all tokens but special ones (Salazar
    et al. 2020, arXiv:1910.14659).

    Args:
        folder: holds WikiText's raw test part.
        data: how it is cut; rows are of 128 tokens at most.
        rows: so many of them, from all over the text; None: 64.

    Returns:
        loss (nats per token), pseudo_perplexity, num_targets, num_rows, sequence_length; the teacher's as
        `teacher_...`.

    Raises:
        UserError: the models are causal, the text is too short, or the tokenizer is not theirs.
    """
    if data.targets.kind != "mlm":
        raise UserError(
            "pseudo-perplexity is of masked language models",
            "this one is causal: it has a perplexity",
            "ask for --tasks wikitext",
        )
    length = min(LONGEST, data.sequence_length)
    batches = list(_batches(folder, data, length, rows or ROWS))

    def of(source: Source) -> dict[str, Any]:
        refuse_other_tokenizer(source.models, data.tokenizer)
        found = score(source, batches)
        loss = float(found.nll.sum() / found.targets.sum())
        return {"loss": loss, "pseudo_perplexity": perplexity(loss), "num_targets": float(found.targets.sum())}

    result = of(student)
    num_rows = len({int(row) for batch in batches for row in batch.rows})
    result |= {"num_rows": num_rows, "sequence_length": length}
    return result if teacher is None else result | {f"teacher_{key}": value for key, value in of(teacher).items()}


def _batches(folder: Path, data: Cutting, length: int, limit: int) -> Iterator[Batch]:
    """Each chosen row once for each of its tokens, which is masked and its label."""
    tokenizer = load_tokenizer(data.tokenizer)
    vocabulary = vocabulary_of(tokenizer)
    data.targets.check(vocabulary)
    blocks = list(packed(read_text(folder), tokenizer, data.packing, length))
    if not blocks:
        raise UserError(f"the text in {folder} is too short to score", "", "give all of WikiText's test part")
    tokens = np.concatenate([block[0] for block in blocks])
    segments = np.concatenate([block[1] for block in blocks]).astype(np.int64)
    for row in np.linspace(0, len(tokens) - 1, min(limit, len(tokens))).astype(np.int64):
        places = np.flatnonzero(vocabulary.maskable[tokens[row]] & (segments[row] > 0))
        for start in range(0, len(places), AT_ONCE):
            yield _copies(tokens[row], segments[row], places[start : start + AT_ONCE], int(row), vocabulary.mask)


def _copies(tokens: I64, segments: I64, places: I64, row: int, mask: int | None) -> Batch:
    """[n, L] of one row [L], n being the places [n] that are masked, one in each copy."""
    assert mask is not None
    ids, wide = np.tile(tokens, (len(places), 1)), np.tile(segments, (len(places), 1))
    labels = np.full_like(ids, IGNORE)
    each = np.arange(len(places))
    labels[each, places], ids[each, places] = tokens[places], mask
    return Batch(*(torch.from_numpy(a) for a in (ids, wide > 0, wide, labels, np.full(len(places), row))))
