"""Data sets of the Hugging Face hub, streamed: nothing is downloaded that is not read."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, ClassVar, Literal

from megadistill.core.errors import UserError
from megadistill.data.corpora.base import Corpus, Source


class Hub(Corpus):
    """`datasets.load_dataset(path, config, ..., streaming=True)`, in the order of the data set's files."""

    places: ClassVar[frozenset[str]] = Corpus.places | {"data_files"}
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
    """Of the data set."""
    column: str | list[str] = "text"
    """The column that holds the text; several are joined by line ends, such as [title, text]."""

    def sources(self) -> list[Source]:
        """The data set's own shards, which are its files where it has several."""
        number = int(self._load().num_shards)
        return [Source(f"{self.path}#{part}/{number}", self.revision or "newest") for part in range(number)]

    def documents(self, source: Source) -> Iterator[str]:
        part, _, number = source.name.rpartition("#")[2].partition("/")
        wanted = [self.column] if isinstance(self.column, str) else self.column
        rows = self._load()
        if rows.column_names is not None:
            self._check(wanted, rows.column_names)
            rows = rows.select_columns(wanted)
        try:
            if int(number) > 1:
                rows = rows.shard(num_shards=int(number), index=int(part))
            for row in rows:
                self._check(wanted, row)
                texts = [str(row[name]) for name in wanted if row[name] is not None]
                if texts:
                    yield "\n".join(texts)
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

    def _check(self, wanted: list[str], there: Collection[str]) -> None:
        for name in wanted:
            if name not in there:
                raise UserError(
                    f"hub data set {self.path} has no column {name!r}",
                    f"it has {', '.join(there)}",
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
