"""Which documents of a corpus say what an earlier one said: word for word, or nearly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.core.schema import Strict

Hashes = NDArray[np.uint64]
Sketches = NDArray[np.uint32]
Bools = NDArray[np.bool_]

SCHEME = "affine32"
"""datasketch's permutations of 32-bit hashes; named, since its default has changed before."""


class NearDuplicates(Strict):
    """Documents are near duplicates when their sets of word runs overlap enough (MinHash, Broder 1997; with banded
    locality-sensitive hashing). Needs the extra `near-duplicates` (the package datasketch)."""

    threshold: float = Field(0.8, gt=0, lt=1)
    """Estimated Jaccard similarity from which the later document goes."""
    permutations: int = Field(128, ge=16, le=1024)
    """Length of a sketch, 4 bytes each; the estimate's error is about 1 / sqrt(permutations)."""
    words: int = Field(5, ge=1)
    """Words of a run."""


class Sketcher:
    """Makes sketches of documents.

    Raises:
        UserError: datasketch is not installed.
    """

    def __init__(self, config: NearDuplicates) -> None:
        self.config = config
        self._empty = _datasketch().MinHash(num_perm=config.permutations, seed=1, scheme=SCHEME)

    def sketch(self, text: str) -> Sketches:
        """[permutations] the smallest hashes of the document's word runs."""
        words = text.casefold().split()
        runs = range(max(1, len(words) - self.config.words + 1))
        grams = {" ".join(words[start : start + self.config.words]).encode("utf-8", "replace") for start in runs}
        made = self._empty.copy()
        made.update_batch(sorted(grams))
        result: Sketches = made.hashvalues
        return result


def repeated(hashes: Hashes) -> Bools:
    """[n] whether the same hash came before. Takes about 32 bytes a document."""
    result = np.ones(len(hashes), dtype=np.bool_)
    result[np.unique(hashes, return_index=True)[1]] = False
    return result


def nearly_repeated(sketches: Sequence[Sketches], candidates: Bools, config: NearDuplicates) -> Bools:
    """[n] which of the candidates resemble an earlier candidate that is kept; the first of each family stays.

    Args:
        sketches: [documents, permutations] of every file, in order.
        candidates: [n] the documents still in question, over all files.
    """
    library = _datasketch()
    index = library.MinHashLSH(threshold=config.threshold, num_perm=config.permutations)
    result = np.zeros(len(candidates), dtype=np.bool_)
    kept: dict[int, Sketches] = {}
    number = -1
    for of_file in sketches:
        for sketch in of_file:
            number += 1
            if not candidates[number]:
                continue
            made = library.MinHash(num_perm=config.permutations, seed=1, hashvalues=sketch, scheme=SCHEME)
            if any((kept[other] == sketch).mean() >= config.threshold for other in index.query(made)):
                result[number] = True
            else:
                index.insert(number, made)
                kept[number] = sketch
    return result


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError:
        raise UserError(
            "data.near_duplicates needs the package datasketch", "", "pip install 'megadistill[near-duplicates]'"
        ) from None
    return datasketch
