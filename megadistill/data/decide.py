"""Which documents become training rows, which are held out, and which go: decided over all files at once.

The first of equals stays, in the order of the sources, so what is kept does not depend on who read what when.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from megadistill.data.corpora.base import Corpus
from megadistill.data.duplicates import NearDuplicates, nearly_repeated, repeated
from megadistill.data.encode import Encoded


class Fate(IntEnum):
    """What becomes of a document."""

    BEYOND = 0
    """Behind the corpus's max_documents or max_megabytes: as if it were not there."""
    TRAIN = 1
    HELD_OUT = 2
    DUPLICATE = 3
    NEAR_DUPLICATE = 4
    CONTAMINATED = 5


Fates = NDArray[np.uint8]


def decide(files: Sequence[Encoded], corpus: Corpus, held_out: float, near: NearDuplicates | None) -> list[Fates]:
    """The `Fate` of every document of every file.

    Args:
        held_out: share of the documents; decided by their hash alone, for all corpora alike.
    """
    hashes = np.concatenate([file.hashes for file in files])
    contaminated = np.concatenate([file.contaminated for file in files])
    fates = np.full(len(hashes), Fate.TRAIN, dtype=np.uint8)
    fates[hashes < np.uint64(int(held_out * 2**64))] = Fate.HELD_OUT
    within = _within_limits(np.concatenate([file.characters for file in files]), corpus)
    twice = np.zeros(len(hashes), dtype=np.bool_)
    twice[: within.sum()] = repeated(hashes[within])
    fates[contaminated] = Fate.CONTAMINATED
    fates[twice] = Fate.DUPLICATE
    fates[~within] = Fate.BEYOND
    if near is not None:
        candidates = (fates == Fate.TRAIN) | (fates == Fate.HELD_OUT)
        fates[nearly_repeated([file.sketches for file in files], candidates, near)] = Fate.NEAR_DUPLICATE
    return np.split(fates, np.cumsum([len(file.hashes) for file in files])[:-1])


def enough(files: Sequence[Encoded], corpus: Corpus) -> bool:
    """Whether these first files hold all that the corpus's limits allow, so that no other need be read."""
    characters = sum(int(file.characters.sum()) for file in files)
    number = sum(len(file.hashes) for file in files)
    return (corpus.max_documents is not None and number >= corpus.max_documents) or (
        corpus.max_megabytes is not None and characters >= corpus.max_megabytes * 1e6
    )


def _within_limits(characters: NDArray[np.int64], corpus: Corpus) -> NDArray[np.bool_]:
    """[n] the documents up to the one that reaches a limit: a prefix."""
    within = np.ones(len(characters), dtype=np.bool_)
    if corpus.max_documents is not None:
        within[corpus.max_documents :] = False
    if corpus.max_megabytes is not None:
        before = np.cumsum(characters) - characters
        within &= before < corpus.max_megabytes * 1e6
    return within
