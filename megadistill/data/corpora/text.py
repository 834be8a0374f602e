"""Plain text files: what a document is in them is up to you."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from megadistill.data.corpora.base import Corpus, Source
from megadistill.data.corpora.files import expand, lines


class Text(Corpus):
    """UTF-8 text files, plain or .gz or .zst."""

    kind: Literal["text"] = "text"
    files: list[str] = Field(min_length=1)
    """Paths, globs or fsspec urls."""
    document: Literal["file", "line", "paragraph"] = "paragraph"
    """A document is a whole file, a line, or a paragraph (blank lines between them)."""

    def sources(self) -> list[Source]:
        return expand(self.files, self.name)

    def documents(self, source: Source) -> Iterator[str]:
        if self.document == "file":
            yield "\n".join(line for _, line in lines(source))
        elif self.document == "line":
            yield from (line for _, line in lines(source) if line.strip())
        else:
            paragraph: list[str] = []
            for _, line in lines(source):
                if line.strip():
                    paragraph.append(line)
                elif paragraph:
                    yield "\n".join(paragraph)
                    paragraph = []
            if paragraph:
                yield "\n".join(paragraph)
