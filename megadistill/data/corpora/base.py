"""What a corpus is: a config that lists its sources and reads the documents of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from pydantic import Field, model_validator

from megadistill.core.schema import Strict


@dataclass(frozen=True)
class Source:
    """One unit of work of a corpus: a file, a folder, a data set. Sources are read independently."""

    name: str
    """What the corpus needs to find it again, such as a path."""
    stamp: str = ""
    """Changes when the content does (size and time of a file, version of a package); shards made from another
    stamp are made anew."""
    size: int = 0
    """Bytes, as a measure of the work in it; 0: not known. Small neighbours are read in one go."""


class Corpus(Strict):
    """Base of every kind of corpus. Documents come out in a fixed order."""

    places: ClassVar[frozenset[str]] = frozenset({"files", "path", "folder"})
    """Names of fields that say where the text lies: what was prepared may be read where they say otherwise."""
    kind: str
    name: str = Field("", pattern=r"^[\w.-]+$")
    """Names its folder and keys its masks; the kind when not given. Unique among the corpora."""
    weight: float | None = Field(None, gt=0)
    """Share of the training rows, relative to the other corpora's weights: give all corpora one, or none.
    Without weights every row of every corpus is seen `repeats` times per epoch."""
    repeats: int = Field(1, ge=1)
    """How often each row comes in one epoch of the mixture; for mixtures without weights."""
    epochs: int | None = Field(None, ge=1)
    """Passes after which this corpus leaves the mixture, its share going to the others; for mixtures with weights."""
    join_rows: int = Field(1, ge=1)
    """So many consecutive rows of a source form one document (BookCorpus: a sentence or paragraph a row)."""
    max_documents: int | None = Field(None, gt=0)
    """Stop after so many documents."""
    max_megabytes: float | None = Field(None, gt=0)
    """Stop after so many million characters of text."""

    @model_validator(mode="before")
    @classmethod
    def _named_after_its_kind(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("name"):
            return {**values, "name": values.get("kind", cls.model_fields["kind"].default)}
        return values

    def sources(self) -> list[Source]:
        """The units of work, in a fixed order.

        Raises:
            UserError: nothing is there.
        """
        raise NotImplementedError

    def documents(self, source: Source) -> Iterator[str]:
        """The texts of one source, in order.

        Raises:
            UserError: the source is not what its name or the config says.
        """
        raise NotImplementedError

    def read(self, source: Source) -> Iterator[str]:
        """The documents of one source after `join_rows`."""
        rows = self.documents(source)
        if self.join_rows == 1:
            return rows
        return iter(lambda: "\n".join(islice(rows, self.join_rows)), "")
