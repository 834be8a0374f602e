"""Which documents of a corpus are read, which of them are new, and which are held out of training."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import partial
from hashlib import blake2b
from itertools import islice
from multiprocessing import get_context

from megadistill.data.config import HeldOutConfig
from megadistill.data.corpora.base import Corpus, Source, read_all

SOURCES_PER_TASK = 8
"""How many small sources a process reads before it hands their documents over."""


def read(corpus: Corpus, sources: list[Source]) -> Iterator[str]:
    """The documents of all sources in order, however many processes read them, up to the corpus's limits."""
    characters = 0
    for text in islice(_unlimited(corpus, sources), corpus.max_documents):
        yield text
        characters += len(text)
        if corpus.max_megabytes is not None and characters >= corpus.max_megabytes * 1e6:
            return


def _unlimited(corpus: Corpus, sources: list[Source]) -> Iterator[str]:
    processes = min(os.cpu_count() or 1, len(sources))
    if not corpus.parallel or processes == 1:
        for source in sources:
            yield from corpus.read(source)
        return
    with get_context("spawn").Pool(processes) as pool:  # fork is not safe beside the tokenizer's threads
        for texts in pool.imap(partial(read_all, corpus), sources, SOURCES_PER_TASK):
            yield from texts


class Sieve:
    """Drops empty and repeated documents and says which are held out; counts as it goes."""

    def __init__(self, held_out: HeldOutConfig) -> None:
        self.held_out_below = int(held_out.fraction * 2**64)
        self.documents = self.duplicates = self.characters = 0
        self._seen: set[int] = set()

    def kept(self, texts: Iterable[str]) -> Iterator[tuple[str, bool]]:
        """(document, is it held out) of each text that is new."""
        for text in texts:
            if not text.strip():
                continue
            digest = content_hash(text)
            if digest in self._seen:
                self.duplicates += 1
                continue
            self._seen.add(digest)
            self.documents += 1
            self.characters += len(text)
            yield text, digest < self.held_out_below


def content_hash(text: str) -> int:
    """64 uniform bits of what a document says, blind to case and white space."""
    normalised = " ".join(text.casefold().split())
    return int.from_bytes(blake2b(normalised.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def batches(documents: Iterable[tuple[str, bool]], characters: int) -> Iterator[list[tuple[str, bool]]]:
    """Runs of documents with at least so many characters together."""
    batch: list[tuple[str, bool]] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document[0])
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
