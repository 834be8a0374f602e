"""Which documents a source gives, in runs that fit in memory, and how two of them are told to be the same."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b

from megadistill.data.corpora.base import Corpus, Source


def read(corpus: Corpus, sources: list[Source]) -> Iterator[str]:
    """The documents of some sources in order that say anything, no more than the corpus's limits allow."""
    number = characters = 0
    most, longest = corpus.max_documents, corpus.max_megabytes
    for source in sources:
        for text in corpus.read(source):
            if not text.strip():
                continue
            yield text
            number, characters = number + 1, characters + len(text)
            if number == most or (longest is not None and characters >= longest * 1e6):
                return


def content_hash(text: str) -> int:
    """64 uniform bits of what a document says, blind to case and white space."""
    normalised = " ".join(text.casefold().split())
    return int.from_bytes(blake2b(normalised.encode("utf-8", "replace"), digest_size=8).digest(), "little")


def batches(documents: Iterable[str], characters: int) -> Iterator[list[str]]:
    """Runs of documents with at least so many characters together."""
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
