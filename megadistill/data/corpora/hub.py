"""Data sets of the Hugging Face hub, streamed: nothing is downloaded that is not read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from megadistill.core.errors import UserError
from megadistill.data.corpora.base import Corpus, Source


class Hub(Corpus):
    """`datasets.load_dataset(path, config, ..., streaming=True)`, in the order of the data set's files."""

    kind: Literal["hub"] = "hub"
    path: str
    """A repository (wikimedia/wikipedia), a local folder, or a format (json, text) with `data_files`."""
    config: str | None = None
    """The data set's configuration, such as 20231101.en."""
    revision: str | None = None
    """A commit makes it repeatable; without one `prepare` reads the newest, and cannot see later changes."""
    data_files: str | list[str] | None = None
    """Only these files of it."""
    split: str = "train"
    column: str = "text"
    """The column that holds the text."""

    def sources(self) -> list[Source]:
        return [Source(self.path, self.revision or "newest")]

    def documents(self, source: Source) -> Iterator[str]:
        rows = self._load()
        columns = rows.column_names
        if columns is not None and self.column not in columns:
            raise self._unknown_column(columns)
        if columns is not None:
            rows = rows.select_columns(self.column)
        try:
            for row in rows:
                if self.column not in row:
                    raise self._unknown_column(list(row))
                if row[self.column] is not None:
                    yield str(row[self.column])
        except (OSError, ValueError, RuntimeError) as error:
            raise self._cannot_read(error) from None

    def _load(self) -> Any:
        import datasets

        try:
            return datasets.load_dataset(
                self.path,
                self.config,
                revision=self.revision,
                data_files=self.data_files,
                split=self.split,
                streaming=True,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._cannot_read(error) from None

    def _unknown_column(self, columns: list[str]) -> UserError:
        return UserError(
            f"hub data set {self.path} has no column {self.column!r}",
            f"it has {', '.join(columns)}",
            f"set corpora ({self.name}): column",
        )

    def _cannot_read(self, error: Exception) -> UserError:
        """What `datasets` could not do, in our words: its errors have no types that tell these apart."""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if "scripts are no longer supported" in str(error):
            fix = "use its parquet copy (revision: refs/convert/parquet), or download it for kind: parquet"
        elif "split" in reason.lower() or "config" in reason.lower():
            fix = f"set corpora ({self.name}): config, split"
        else:
            fix = "check the name and the network, or download it elsewhere for kind: parquet or jsonl"
        return UserError(f"cannot read hub data set {self.path}", f"{type(error).__name__}: {reason}", fix)
