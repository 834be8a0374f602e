"""Parquet files: one row a document, the text in one column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.data.corpora.base import Corpus, Source
from megadistill.data.corpora.files import expand, open_file


class Parquet(Corpus):
    """Parquet files, as the hub stores Wikipedia (`text` beside id, url and title)."""

    kind: Literal["parquet"] = "parquet"
    files: list[str] = Field(min_length=1)
    """Paths, globs or fsspec urls."""
    column: str | list[str] = "text"
    """The column that holds the text; several are joined by line ends, such as [title, text]."""

    def sources(self) -> list[Source]:
        return expand(self.files, self.name)

    def documents(self, source: Source) -> Iterator[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with open_file(source) as raw:
            try:
                table = pq.ParquetFile(raw)
                names = [self.column] if isinstance(self.column, str) else self.column
                for name in names:
                    self._check(source, table.schema_arrow, name)
                for batch in table.iter_batches(batch_size=256, columns=names):
                    for texts in zip(*(batch.column(name).to_pylist() for name in names), strict=True):
                        if any(text is not None for text in texts):
                            yield "\n".join(text for text in texts if text is not None)
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{source.name} cannot be read as parquet",
                    str(error).splitlines()[0],
                    "the file is cut short or not parquet: get it again",
                ) from None

    def _check(self, source: Source, schema: Any, name: str) -> None:
        import pyarrow.types as types

        fix = f"set corpora ({self.name}): column"
        if name not in schema.names:
            raise UserError(f"{source.name} has no column {name!r}", f"it has {', '.join(schema.names)}", fix)
        kind = schema.field(name).type
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            raise UserError(f"{source.name}: column {name!r} is not text", f"its type is {kind}", fix)
