"""Parquet files: one row a document, the text in one column."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.data.corpora.base import Corpus, Source
from megadistill.data.corpora.files import expand, open_file


class Parquet(Corpus):
    """Parquet files, as the hub stores Wikipedia (`text` beside id, url and title)."""

    kind: Literal["parquet"] = "parquet"
    files: list[str] = Field(min_length=1)
    """Paths, globs or fsspec urls."""
    column: str = "text"
    """The column that holds the text."""

    def sources(self) -> list[Source]:
        return expand(self.files, self.name)

    def documents(self, source: Source) -> Iterator[str]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        with open_file(source) as raw:
            try:
                table = pq.ParquetFile(raw)
                names = table.schema_arrow.names
                if self.column not in names:
                    raise UserError(
                        f"{source.name} has no column {self.column!r}",
                        f"it has {', '.join(names)}",
                        f"set corpora ({self.name}): column",
                    )
                kind = table.schema_arrow.field(self.column).type
                if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
                    raise UserError(
                        f"{source.name}: column {self.column!r} is not text",
                        f"its type is {kind}",
                        f"set corpora ({self.name}): column",
                    )
                for batch in table.iter_batches(batch_size=256, columns=[self.column]):
                    yield from (text for text in batch.column(0).to_pylist() if text is not None)
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise UserError(
                    f"{source.name} cannot be read as parquet",
                    str(error).splitlines()[0],
                    "the file is cut short or not parquet: get it again",
                ) from None
