"""JSON lines: one object a line, the text in one of its fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.data.corpora.base import Corpus, Source
from megadistill.data.corpora.files import expand, lines


class JsonLines(Corpus):
    """.jsonl files, plain or .gz or .zst."""

    kind: Literal["jsonl"] = "jsonl"
    files: list[str] = Field(min_length=1)
    """Paths, globs or fsspec urls."""
    field: str = "text"
    """The field that holds the text."""

    def sources(self) -> list[Source]:
        return expand(self.files, self.name)

    def documents(self, source: Source) -> Iterator[str]:
        for number, line in lines(source):
            if not line.strip():
                continue
            where = f"{source.name} line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{where} is not JSON", str(error), "every line must be one JSON object") from None
            if not isinstance(row, dict) or self.field not in row:
                found = f"found {', '.join(row)}" if isinstance(row, dict) else f"found {type(row).__name__}"
                raise UserError(f"{where} has no field {self.field!r}", found, f"set corpora ({self.name}): field")
            text = row[self.field]
            if text is None:
                continue
            if not isinstance(text, str):
                raise UserError(
                    f"{where}: {self.field!r} is not text",
                    f"found {type(text).__name__}",
                    f"set corpora ({self.name}): field",
                )
            try:
                text.encode()
            except UnicodeEncodeError as error:  # JSON can spell half a character; no tokenizer can read one
                raise UserError(
                    f"{where}: {self.field!r} is not Unicode text",
                    f"character {error.start + 1} is \\u{ord(text[error.start]):04x}, half of a surrogate pair",
                    "remove it, or write the file again from its source",
                ) from None
            yield text
