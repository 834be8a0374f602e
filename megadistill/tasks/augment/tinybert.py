"""TinyBERT's augmentation (Jiao et al. 2020, algorithm 1): words replaced by what a masked language model puts in their
place or, where they are several pieces to it, by their neighbours among word vectors."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from megadistill.core.errors import UserError
from megadistill.core.types import IGNORE, Batch
from megadistill.data.tokenization import Tokenizer, load_tokenizer
from megadistill.kernels.chunks import fp32_logits
from megadistill.models.heads import is_causal
from megadistill.models.loading import load_pretrained
from megadistill.models.signals import LanguageModel
from megadistill.models.vectors import read_vectors
from megadistill.tasks.augment.base import Augment, Made, Maker, Pair, collect, random_of
from megadistill.tasks.encoding import cut, frame

_WORD = re.compile(r"[^\W\d_]+")
"""A run of letters: numbers and punctuation are never replaced, as in the authors' code."""

TOKENS_AT_ONCE = 16384
"""Of a batch of masked rows, padding included."""

Words = list[tuple[int, int, list[str]]]
"""(first character, last + 1, candidates) of each word of a text that may be replaced."""


class TinyBertAugment(Augment):
    """Each word is replaced with `probability` by one of its `candidates`. They are what the model predicts where this
    one word of the original is masked, as in the authors' code (in the algorithm as printed, words before it may have
    been replaced already; in the code the model also reads the original behind it). Of a pair each text is changed in
    turn, the other stays."""

    kind: Literal["tinybert"]
    language_model: str
    """A masked language model: a folder in the Hugging Face format, or a hub name."""
    tokenizer: str | None = None
    """Its tokenizer; None: the folder has it."""
    vectors: Path | None = None
    """Word vectors in GloVe's text format, for words of several pieces; None: these stay as they are."""
    max_vectors: int = Field(100_000, ge=1)
    """Neighbours are looked for among the first so many of the file (the most frequent words, in GloVe's)."""
    probability: float = Field(0.4, ge=0, le=1)
    """p_t."""
    candidates: int = Field(15, ge=1)
    """K."""
    samples: int = Field(20, ge=1)
    """N_a, draws of a text; duplicates are dropped. The authors' code: 10 on MNLI and QQP, 20 on SST-2 and QNLI, 30 on
    CoLA, MRPC, STS-B and RTE."""
    stop_words: bool = True
    """Replace words such as `the` and `not` too, as algorithm 1 says; the authors' code leaves them as they are (here:
    those of scikit-learn's list)."""

    def sources(self) -> dict[str, Path | str]:
        found = {"language_model": self.language_model, "tokenizer": self.tokenizer, "vectors": self.vectors}
        return {name: path for name, path in found.items() if path is not None}

    def maker(self, pairs: Sequence[Pair], device: torch.device) -> Maker:
        vectors = None if self.vectors is None else _Vectors(self.vectors, self.max_vectors, device)
        model = load_pretrained(self.language_model).to(device).eval()
        if model.answers != "tokens" or is_causal(model.hf):
            raise UserError(
                f"task.augment.language_model: {self.language_model} is no masked language model",
                f"it is a {type(model.hf).__name__}",
                "give BERT, RoBERTa or one like them with its vocabulary head",
            )
        return _TinyBert(self, model, load_tokenizer(self.tokenizer or self.language_model), vectors, device)


class _Vectors:
    """Neighbours by the cosine of word vectors."""

    def __init__(self, path: Path, limit: int, device: torch.device) -> None:
        words: list[str] = []
        rows = []
        for word, vector in read_vectors(path, "task.augment.vectors"):
            norm = float(np.linalg.norm(vector))
            if norm > 0:
                words.append(word)
                rows.append(vector / norm)
            if len(words) == limit:
                break
        if not words:
            raise UserError(f"task.augment.vectors: {path} has no vectors", "", "give word vectors as text")
        self.words, self.number = words, {word: number for number, word in reversed(list(enumerate(words)))}
        self.unit = torch.from_numpy(np.stack(rows)).to(device)

    def neighbours(self, asked: Sequence[str], number: int) -> dict[str, list[str]]:
        """The nearest so many of each word, or of it in lower case, itself left out; none of unknown words."""
        places = {word: self.number.get(word, self.number.get(word.lower())) for word in asked}
        known = [(word, place) for word, place in places.items() if place is not None]
        result: dict[str, list[str]] = {word: [] for word in asked}
        for start in range(0, len(known), 256):
            some = known[start : start + 256]
            own = torch.tensor([place for _, place in some], device=self.unit.device)
            cosines = self.unit[own] @ self.unit.T
            cosines[torch.arange(len(some), device=own.device), own] = -2.0
            best = cosines.topk(min(number, len(self.words) - 1)).indices.sort().values.tolist()
            for (word, _), places_of in zip(some, best, strict=True):
                found = [self.words[place] for place in places_of]
                result[word] = [each.title() for each in found] if word.istitle() else found
        return result


@dataclass(frozen=True)
class _Masked:
    """A row with one word masked, at `place`."""

    ids: list[int]
    place: int
    candidates: list[str]
    """Filled by the model."""


class _TinyBert:
    def __init__(
        self,
        config: TinyBertAugment,
        model: LanguageModel,
        tokenizer: Tokenizer,
        vectors: _Vectors | None,
        device: torch.device,
    ) -> None:
        special = tokenizer.special
        if special.mask is None:
            raise UserError(
                "task.augment.language_model: its tokenizer has no token for what is masked",
                f"{config.tokenizer or config.language_model}: {special.as_dict()}",
                "give the tokenizer that the model was trained with (task.augment.tokenizer)",
            )
        self.config, self.model, self.tokenizer, self.device = config, model, tokenizer, device
        self.vectors = vectors
        self.room = cut(_longest(model), None, _longest(model), special)[0]
        self.spelt, self.allowed = _whole_words(tokenizer, model.num_tokens)
        self.left: frozenset[str] = frozenset()
        if not config.stop_words:
            from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

            self.left = frozenset(ENGLISH_STOP_WORDS)

    def __call__(self, pairs: Sequence[Pair]) -> list[Made]:
        texts = sorted({text for pair in pairs for text in pair if text is not None})
        words = dict(zip(texts, self.words(texts), strict=True))
        return [self.of(pair, words) for pair in pairs]

    def of(self, pair: Pair, words: dict[str, Words]) -> Made:
        """The variants of one example."""
        draw = random.Random(random_of(self.config, pair))
        first, second = pair
        counts: Counter[str] = Counter()
        drawn: list[Pair] = []
        for _ in range(self.config.samples):
            drawn.append((self.changed(first, words[first], draw, counts), second))
        for _ in range(0 if second is None else self.config.samples):
            assert second is not None
            drawn.append((first, self.changed(second, words[second], draw, counts)))
        return collect(pair, drawn, counts)

    def changed(self, text: str, words: Words, draw: random.Random, counts: Counter[str]) -> str:
        """One variant of one text."""
        pieces, end = [], 0
        for start, stop, candidates in words:
            word = text[start:stop]
            chance, which = draw.random(), draw.random()
            if chance < self.config.probability and candidates:
                counts["replaced"] += 1
                word = candidates[int(which * len(candidates))]
            pieces += [text[end:start], word]
            end = stop
        counts["words"] += len(words)
        counts["without_candidates"] += sum(not candidates for _, _, candidates in words)
        return "".join([*pieces, text[end:]])

    def words(self, texts: Sequence[str]) -> Iterator[Words]:
        """What may be replaced in each text."""
        encodings = self.tokenizer.backend.encode_batch(list(texts), add_special_tokens=False)
        rows: list[_Masked] = []
        rare: dict[str, list[str]] = {}
        found: list[Words] = []
        for text, encoding in zip(texts, encodings, strict=True):
            of_text: Words = []
            for match in _WORD.finditer(text):
                if match[0].lower() in self.left:
                    continue
                start, stop = match.span()
                pieces = [i for i, (a, b) in enumerate(encoding.offsets) if a < stop and b > start]
                a, b = encoding.offsets[pieces[0]] if pieces else (0, 0)
                whole = text[a:b].strip() == match[0] and encoding.ids[pieces[0]] != self.tokenizer.special.unk
                if not whole:
                    of_text.append((start, stop, rare.setdefault(match[0], [])))
                elif (row := self.masked(encoding.ids, pieces[0])) is not None:
                    of_text.append((start, stop, row.candidates))
                    rows.append(row)
            found.append(of_text)
        self.predict(rows)
        if self.vectors is not None and rare:
            for word, neighbours in self.vectors.neighbours(sorted(rare), self.config.candidates).items():
                rare[word] += neighbours
        yield from found

    def masked(self, ids: Sequence[int], place: int) -> _Masked | None:
        """The framed row with the token at `place` masked; None where rows end before it."""
        special = self.tokenizer.special
        assert special.mask is not None
        row, _ = frame([*ids[:place], special.mask, *ids[place + 1 :]][: self.room], None, special)
        return _Masked(row, place + (special.cls is not None), []) if place < self.room else None

    @torch.no_grad()
    def predict(self, rows: Sequence[_Masked]) -> None:
        """Fill in each row's most probable words, in the order of their ids."""
        ordered = sorted(rows, key=lambda row: len(row.ids))
        start = 0
        while start < len(ordered):
            stop = start + 1
            while stop < len(ordered) and (stop + 1 - start) * len(ordered[stop].ids) <= TOKENS_AT_ONCE:
                stop += 1
            some = ordered[start:stop]
            for row, best in zip(some, self.best(some).tolist(), strict=True):
                row.candidates.extend(self.spelt[number] for number in best)
            start = stop

    def best(self, rows: Sequence[_Masked]) -> Tensor:
        """[rows, K] ids."""
        width = len(rows[-1].ids)
        ids = np.full((len(rows), width), self.tokenizer.special.padding, dtype=np.int64)
        mask = np.zeros(ids.shape, dtype=np.bool_)
        for number, row in enumerate(rows):
            ids[number, : len(row.ids)], mask[number, : len(row.ids)] = row.ids, True
        parts = (ids, mask, mask.astype(np.int64), np.full_like(ids, IGNORE), np.arange(len(rows)))
        batch = Batch(*map(torch.from_numpy, parts)).to(self.device)
        places = torch.tensor([number * width + row.place for number, row in enumerate(rows)], device=self.device)
        number = min(self.config.candidates, int(self.allowed.sum()))

        def top(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            logits = fp32_logits(hidden, weight, bias)
            return logits.masked_fill(~self.allowed.to(logits.device), -torch.inf).topk(number).indices

        return self.model.signals(batch, frozenset()).head(top, places).sort().values.cpu()


def _longest(model: LanguageModel) -> int:
    """Tokens that a row may have; RoBERTa's positions begin behind its padding id."""
    config: Any = model.hf.config
    known = int(getattr(config, "max_position_embeddings", 512))
    table: Any = getattr(getattr(model.hf.base_model, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)
    return min(512, known - (0 if padding is None else padding + 1))


def _whole_words(tokenizer: Tokenizer, entries: int) -> tuple[list[str], Tensor]:
    """The spelling of every id, and [entries] bool whether it is a word of letters that stands by itself."""
    spelt = [tokenizer.decode([number]).strip() for number in range(min(entries, tokenizer.vocabulary_size))]
    spelt += [""] * (entries - len(spelt))
    opens = tokenizer.opens_word
    allowed = torch.tensor([_WORD.fullmatch(word) is not None for word in spelt])
    if opens is not None:
        size = min(len(opens), entries)
        allowed[:size] &= torch.from_numpy(opens[:size].copy())
        allowed[size:] = False
    for number in tokenizer.special_ids:
        allowed[number] = False
    return spelt, allowed
