"""Made-up text of any size, to try things out at scale: words by Zipf's law, the same for all time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import numpy as np
from pydantic import Field

from megadistill.core.seeds import derive
from megadistill.data.corpora.base import Corpus, Source
from megadistill.data.hashing import uniform

DOCUMENTS_PER_SOURCE = 10_000
LEXICON = 20_000
"""Different words."""


class Synthetic(Corpus):
    """Documents of random words; nothing can be learnt from them but how often words come."""

    kind: Literal["synthetic"] = "synthetic"
    num_documents: int = Field(gt=0)
    """How many."""
    words: int = Field(200, gt=1)
    """Mean words of a document; lengths are uniform from half to one and a half of it."""
    seed: int = 0
    """Another one gives other documents."""

    def sources(self) -> list[Source]:
        starts = range(0, self.num_documents, DOCUMENTS_PER_SOURCE)
        sizes = [min(DOCUMENTS_PER_SOURCE, self.num_documents - start) * self.words * 7 for start in starts]
        return [Source(f"documents from {start}", "v1", size) for start, size in zip(starts, sizes, strict=True)]

    def documents(self, source: Source) -> Iterator[str]:
        first = int(source.name.rpartition(" ")[2])
        lexicon = _lexicon()
        for number in range(first, min(first + DOCUMENTS_PER_SOURCE, self.num_documents)):
            draws = uniform(np.array([derive(self.seed, "synthetic", number)], dtype=np.uint64), 0, 2 * self.words)[0]
            length = max(1, int((0.5 + draws[0]) * self.words))
            ranks = (LEXICON ** draws[1 : 1 + length]).astype(np.int64) - 1  # density 1 / rank
            yield " ".join(lexicon[rank] for rank in ranks.tolist()) + "."


@lru_cache
def _lexicon() -> list[str]:
    """Words of one to five syllables, the frequent ones short."""
    consonants, vowels = "bdfgklmnprstvz", "aeiou"
    syllables = [a + b for a in consonants for b in vowels]
    words = []
    for number in range(LEXICON):
        word, left = "", number + 1
        while left:
            left, digit = divmod(left - 1, len(syllables))
            word += syllables[digit]
        words.append(word)
    return words
