"""What text a run trains on, and how it is cut, mixed and masked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

import megadistill.data.corpora
from megadistill.core.schema import OneOf, Strict, discover
from megadistill.core.types import Attends
from megadistill.data.contamination import Decontaminate
from megadistill.data.corpora.base import Corpus
from megadistill.data.duplicates import NearDuplicates
from megadistill.data.masking import Mlm, Targets
from megadistill.data.order import Blocks
from megadistill.data.packing import Packing
from megadistill.data.reader import ReadConfig
from megadistill.data.tokenizer_training import TrainTokenizer

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
    """Where the text comes from; several are mixed."""
    tokenizer: str
    """A folder or file (tokenizer.json, vocab.txt, vocab.json with merges.txt, *.model) or a name on the hub.
    It must be the teacher's: logits are compared id by id."""
    train_tokenizer: TrainTokenizer | None = None
    """`prepare` trains a tokenizer on the corpora first, and writes it to the folder that `tokenizer` names."""
    sequence_length: int = Field(128, ge=8, le=65535)
    """Tokens per row."""
    packing: Packing = "concat"
    """concat: documents one after another, cut where a row is full, hardly any padding. best_fit: documents that fit
    into a row are never cut, at the price of some padding. split: each document by itself in framed pieces, padded
    (DistilBERT). pairs: [CLS] A [SEP] B [SEP] with sentences of one document, A being segment 1 and B 2; models with
    types for two texts are told which is which (BERT)."""
    attention: Literal["row", "document"] = "row"
    """What a position sees: its whole row, or its own document only, with positions that restart in each."""
    targets: OneOf[Targets] = Mlm()
    """What positions must predict."""
    held_out: HeldOutConfig = HeldOutConfig()
    """What is kept for evaluation, and never trained on."""
    near_duplicates: NearDuplicates | None = None
    """Drop documents that resemble an earlier one of their corpus; None: only those that equal one."""
    decontaminate: Decontaminate | None = None
    """Drop documents that share text with evaluation files."""
    order: Literal["global", "block"] = "global"
    """global: a new permutation of all rows in every epoch. block: blocks of rows are permuted, and rows inside a
    window of blocks, so that little of the corpus must be near at a time."""
    blocks: Blocks = Blocks()
    """For `order: block`."""
    read: ReadConfig = ReadConfig()
    """How training reads the shards."""

    @model_validator(mode="after")
    def _corpora_can_be_told_apart_and_mixed(self) -> DataConfig:
        twice = [name for name, n in Counter(corpus.name for corpus in self.corpora).items() if n > 1]
        if twice:
            raise ValueError(f"corpora: {twice[0]!r} appears twice; give each its own `name`")
        unweighted = [corpus.name for corpus in self.corpora if corpus.weight is None]
        if 0 < len(unweighted) < len(self.corpora):
            raise ValueError(f"corpora: {', '.join(unweighted)} has no weight; give all corpora a weight, or none")
        for corpus in self.corpora:
            if unweighted and corpus.epochs is not None:
                raise ValueError(f"corpora: {corpus.name}: epochs needs weights: who leaves must have had a share")
            if not unweighted and corpus.repeats > 1:
                raise ValueError(f"corpora: {corpus.name}: repeats is for mixtures without weights; raise its weight")
        return self

    @model_validator(mode="after")
    def _pairs_see_each_other(self) -> DataConfig:
        if self.packing == "pairs" and self.attention == "document":
            raise ValueError("attention: document keeps A and B of packing: pairs apart; set attention: row")
        return self

    @property
    def attends(self) -> Attends:
        """What models are shown of a row."""
        return "pair" if self.packing == "pairs" else self.attention

    @property
    def weights(self) -> list[float] | None:
        """None: every row once per epoch."""
        given = [corpus.weight for corpus in self.corpora if corpus.weight is not None]
        return given or None
