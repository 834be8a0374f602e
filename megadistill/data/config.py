"""What text a run trains on, and how it is cut, mixed and masked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

import megadistill.data.corpora
from megadistill.core.schema import OneOf, Strict, discover
from megadistill.data.corpora.base import Corpus
from megadistill.data.masking import Mlm, Targets
from megadistill.data.packing import Packing

discover(megadistill.data.corpora)  # the union below needs every kind imported first


class HeldOutConfig(Strict):
    """Which documents are kept out of training, to measure on."""

    fraction: float = Field(0.01, ge=0, lt=1)
    """Share of the documents. A hash of the text decides, so a text is held out of all corpora or of none."""
    max_rows: int | None = Field(None, gt=0)
    """Keep at most so many rows of each corpus; held-out documents beyond it are in neither part."""


class DataConfig(Strict):
    """The corpora, and how their text becomes the rows of training."""

    dir: Path
    """Where `prepare` writes the shards and `train` reads them: <dir>/<corpus>/{train,held_out}/."""
    corpora: list[OneOf[Corpus]] = Field(min_length=1)
    tokenizer: str
    """A folder or file (tokenizer.json, vocab.txt, vocab.json with merges.txt, *.model) or a name on the hub.
    It must be the teacher's: logits are compared id by id."""
    sequence_length: int = Field(128, ge=8, le=65535)
    """Tokens per row."""
    packing: Packing = "concat"
    """concat: documents one after another, cut where a row is full, hardly any padding. split: each document
    by itself in framed pieces, padded (DistilBERT)."""
    attention: Literal["row", "document"] = "row"
    """What a position sees: its whole row, or its own document only, with positions that restart in each."""
    targets: OneOf[Targets] = Mlm()
    """What positions must predict."""
    held_out: HeldOutConfig = HeldOutConfig()
    order: Literal["global"] = "global"
    """global: a new permutation of all rows in every epoch."""

    @model_validator(mode="after")
    def _corpora_can_be_told_apart_and_mixed(self) -> DataConfig:
        twice = [name for name, n in Counter(corpus.name for corpus in self.corpora).items() if n > 1]
        if twice:
            raise ValueError(f"corpora: {twice[0]!r} appears twice; give each its own `name`")
        unweighted = [corpus.name for corpus in self.corpora if corpus.weight is None]
        if 0 < len(unweighted) < len(self.corpora):
            raise ValueError(f"corpora: {', '.join(unweighted)} has no weight; give all corpora a weight, or none")
        return self

    @property
    def weights(self) -> list[float] | None:
        """None: every row once per epoch."""
        given = [corpus.weight for corpus in self.corpora if corpus.weight is not None]
        return given or None
