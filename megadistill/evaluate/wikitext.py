"""A language model, and a run's teacher, on WikiText's raw text: perplexity (causal), or masked loss (MLM)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from megadistill.core.errors import UserError
from megadistill.core.types import Batch
from megadistill.data.hashing import row_keys
from megadistill.data.masking import Clm, Mlm, Targets, Vocabulary
from megadistill.data.packing import PACKERS, Frame, Packing
from megadistill.data.packing import Rows as PackedRows
from megadistill.data.tokenization import Tokenizer, load_tokenizer
from megadistill.evaluate.heldout import BATCH_ROWS, score, totals
from megadistill.models.scoring import perplexity
from megadistill.models.signals import LanguageModel
from megadistill.teachers.base import Source

NAMES = ("test.txt", "wiki.test.raw", "wiki.test.tokens")
LONGEST = 512
"""Tokens of a row, of models that no run tells of."""
_FIX = "give --wikitext FOLDER, with WikiText's raw test part in it"


class Cutting(Protocol):
    """How text becomes rows and targets: a run's `DataConfig`, or `plain`."""

    @property
    def tokenizer(self) -> str: ...
    @property
    def packing(self) -> Packing: ...
    @property
    def sequence_length(self) -> int: ...
    @property
    def targets(self) -> Targets: ...


@dataclass(frozen=True)
class Plain:
    """Of a model that no run tells of."""

    tokenizer: str
    packing: Packing
    sequence_length: int
    targets: Targets


def plain(model: LanguageModel, tokenizer: str) -> Plain:
    """A causal model reads one text after another in full rows; one that reads both ways reads framed pieces, in which
    15 % are masked as BERT's.

    Args:
        tokenizer: as `load_tokenizer` reads it.

    Raises:
        UserError: the model has a task's head.
    """
    if model.answers != "tokens":
        raise UserError(
            f"{type(model.hf).__name__} is no language model",
            "it answers a task, so text has no perplexity for it",
            "name a model with a language-model head, or ask for a task as in --tasks sst2 --data FOLDER",
        )
    length = min(LONGEST, int(getattr(model.hf.config, "max_position_embeddings", LONGEST)))
    if model.dims.causal:
        return Plain(tokenizer, "concat", length, Clm())
    return Plain(tokenizer, "split", length, Mlm())


def wikitext(folder: Path, data: Cutting, student: Source, teacher: Source | None) -> dict[str, Any]:
    """Score the test part as one document, packed into rows as the run's own text (no sliding window: each token sees
    only what precedes it in its row, so perplexities are a little higher than with a stride).

    Args:
        folder: holds test.txt or wiki.test.raw.
        data: clm targets give perplexity; mlm the loss at masked positions, their choice fixed by seed 0.

    Returns:
        loss per target, num_targets, sequence_length; for clm `perplexity`, and `word_perplexity` over words between
        spaces, for mlm `masked_share`; the teacher's as `teacher_...`.

    Raises:
        UserError: no such file, no text in it, or a tokenizer that is not the model's.
    """
    text = read_text(folder)
    batches = list(_batches(text, data))
    if not batches:
        raise UserError(f"the text in {folder} is too short to score", f"{len(text)} characters", _FIX)

    def of(source: Source) -> dict[str, Any]:
        refuse_other_tokenizer(source.models, data.tokenizer)
        rows = score(source, batches)
        result: dict[str, Any] = totals(rows, with_teacher=False)
        if data.targets.kind == "clm":
            result["word_perplexity"] = perplexity(float(rows.nll.sum()) / len(text.split()))
        else:
            del result["perplexity"]  # of a few masked tokens at once it is none
        return result

    result = of(student)
    if isinstance(data.targets, Mlm):
        result["masked_share"] = data.targets.probability
    result["sequence_length"] = data.sequence_length
    return result if teacher is None else result | {f"teacher_{key}": value for key, value in of(teacher).items()}


def read_text(folder: Path) -> str:
    """WikiText's test part.

    Raises:
        UserError: no such file, or no text in it.
    """
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


def packed(text: str, tokenizer: Tokenizer, packing: Packing, length: int) -> Iterator[PackedRows]:
    """A text as rows, framed as the tokenizer's models expect."""
    special = tokenizer.special
    frame = Frame(special.cls, special.sep, special.padding, tokenizer.sentence_ends)
    return PACKERS[packing]([tokenizer.encode(text)], length, frame)


def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    special = tokenizer.special
    return Vocabulary(tokenizer.vocabulary_size, special.mask, special.ids(), None, tokenizer.opens_word)


def refuse_other_tokenizer(models: Sequence[LanguageModel], tokenizer: str) -> None:
    """Raises:
    UserError: the tokenizer has ids that one of the models does not know.
    """
    size = load_tokenizer(tokenizer).vocabulary_size
    for model in models:
        if size > model.num_tokens:
            raise UserError(
                f"the tokenizer {tokenizer} is not the model's",
                f"it has {size:,} tokens, and {type(model.hf).__name__} knows {model.num_tokens:,}",
                "put the model's own tokenizer into its folder",
            )


def _batches(text: str, data: Cutting) -> Iterator[Batch]:
    tokenizer = load_tokenizer(data.tokenizer)
    vocabulary, targets = vocabulary_of(tokenizer), _even(data.targets)
    targets.check(vocabulary)
    start = 0
    for tokens, segments in packed(text, tokenizer, data.packing, data.sequence_length):
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
