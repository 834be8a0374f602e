"""Tang et al. 2019, section 3.3: words masked, words replaced by others of their part of speech, n-grams cut out."""

from __future__ import annotations

import json
import random
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from megadistill.core.errors import UserError
from megadistill.tasks.augment.base import Augment, Made, Maker, Pair, collect, random_of
from megadistill.tasks.encoding import MASK

_WORD = re.compile(r"['’]?\w+(?:['’]\w+)*|[^\w\s]")
_LONGEST = 5
"""Words of an n-gram at most."""

_PARTS = ("weights", "tagdict", "classes")

Tagged = list[tuple[int, int, str]]
"""(first character, last + 1, part of speech) of each word of a text."""


class TangAugment(Augment):
    """Each word is masked, or else replaced by a draw from the words of its part of speech, as frequent as they are in
    the training examples (equal ones counted once); then the text is sometimes cut to an n-gram of 1 to 5 words. Of a
    pair the first text is changed, then the second, then both, in turn."""

    kind: Literal["tang"]
    tagger: Path
    """A folder of NLTK's averaged perceptron tagger: averaged_perceptron_tagger_eng of its data, unpacked, or the same
    three files of one that you have trained. Needs `pip install "megadistill[tagger]"`."""
    mask: float = Field(0.1, ge=0, le=1)
    """p_mask."""
    replace: float = Field(0.1, ge=0, le=1)
    """p_pos."""
    ngram: float = Field(0.25, ge=0, le=1)
    """p_ng, of a text."""
    samples: int = Field(20, ge=1)
    """n_iter, draws of an example; duplicates are dropped."""

    @model_validator(mode="after")
    def _a_word_is_masked_or_replaced(self) -> TangAugment:
        if self.mask + self.replace > 1:
            raise ValueError(f"replace: mask {self.mask} and replace {self.replace} are more than 1 together")
        return self

    def sources(self) -> dict[str, Path | str]:
        return {"tagger": self.tagger}

    def check(self) -> None:
        if self.tagger.exists():
            load_tagger(self.tagger)
        else:
            _require()

    def maker(self, pairs: Sequence[Pair], device: torch.device) -> Maker:
        return _Tang(self, load_tagger(self.tagger), pairs)


class _Tang:
    def __init__(self, config: TangAugment, tagger: Any, pairs: Sequence[Pair]) -> None:
        self.config, self.tagger = config, tagger
        found: dict[str, Counter[str]] = defaultdict(Counter)
        for text in (text for pair in pairs for text in pair if text is not None):
            for start, stop, tag in self.tagged(text):
                found[tag][text[start:stop]] += 1
        self.words = {tag: sorted(of_tag) for tag, of_tag in found.items()}
        self.below = {tag: list(accumulate(found[tag][word] for word in self.words[tag])) for tag in found}
        """Of each part of speech: how often its words up to this one occur together."""

    def __call__(self, pairs: Sequence[Pair]) -> list[Made]:
        return [self.of(pair) for pair in pairs]

    def of(self, pair: Pair) -> Made:
        """The variants of one example."""
        draw = random.Random(random_of(self.config, pair))
        first, second = pair
        tagged = [[] if text is None else self.tagged(text) for text in pair]
        counts: Counter[str] = Counter()
        drawn: list[Pair] = []
        for number in range(self.config.samples):
            turn = 0 if second is None else number % 3  # the first, the second, both
            a = first if turn == 1 else self.changed(first, tagged[0], draw, counts)
            b = second if second is None or turn == 0 else self.changed(second, tagged[1], draw, counts)
            drawn.append((a, b))
        return collect(pair, drawn, counts)

    def changed(self, text: str, words: Tagged, draw: random.Random, counts: Counter[str]) -> str:
        """One variant of one text."""
        new = []
        for start, stop, tag in words:
            chance, word = draw.random(), text[start:stop]
            if chance < self.config.mask:
                word = MASK
                counts["masked"] += 1
            elif chance < self.config.mask + self.config.replace:
                below = self.below[tag]
                word = self.words[tag][bisect_right(below, draw.random() * below[-1])]
                counts["replaced"] += 1
            new.append(word)
        counts["words"] += len(words)
        counts["texts"] += 1
        if not words:
            return text
        first, last = 0, len(words)
        if draw.random() < self.config.ngram:
            size = min(1 + int(draw.random() * _LONGEST), len(words))
            first = int(draw.random() * (len(words) - size + 1))
            last = first + size
            counts["cut"] += 1
        between = [text[stop:start] for (_, stop, _), (start, _, _) in pairwise(words)]
        kept = zip(new[first:last], [*between[first : last - 1], ""], strict=True)
        whole = [piece for word_and_space in kept for piece in word_and_space]
        if last - first < len(words):
            return "".join(whole)
        return "".join([text[: words[0][0]], *whole, text[words[-1][1] :]])

    def tagged(self, text: str) -> Tagged:
        spans = [match.span() for match in _WORD.finditer(text)]
        tags = self.tagger.tag([text[start:stop] for start, stop in spans])
        return [(start, stop, str(tag)) for (start, stop), (_, tag) in zip(spans, tags, strict=True)]


def load_tagger(folder: Path) -> Any:
    """NLTK's tagger from its JSON files.

    Raises:
        UserError: NLTK is not installed, or the folder holds none.
    """
    tagger_class = _require()
    found = sorted(folder.glob("averaged_perceptron_tagger_*.weights.json"))
    if not found:
        raise UserError(
            f"task.augment.tagger: {folder} holds no tagger",
            "looked for averaged_perceptron_tagger_*.weights.json",
            "give the unpacked averaged_perceptron_tagger_eng of NLTK's data",
        )
    parts = [found[0].with_name(found[0].name.replace(".weights.", f".{part}.")) for part in _PARTS]
    try:
        tagger = tagger_class.decode_json_obj([json.loads(part.read_text(encoding="utf-8")) for part in parts])
        tagger.tag(["a", "word"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"task.augment.tagger: cannot read {folder}", reason, "unpack it again") from None
    return tagger


def _require() -> Any:
    try:
        from nltk.tag.perceptron import PerceptronTagger
    except ImportError as error:
        raise UserError(
            "task.augment: tang needs a tagger of parts of speech", str(error), 'pip install "megadistill[tagger]"'
        ) from None
    return PerceptronTagger
