"""IMDb reviews, positive or negative (Maas et al. 2011), from the hub's parquet files or the original folders."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.models.heads import TaskHead
from megadistill.tasks import tables
from megadistill.tasks.base import TokenTask
from megadistill.tasks.encoding import Example, refuse_empty
from megadistill.tasks.labelled import Labelled, open_labelled

NAMES = ("neg", "pos")


class ImdbTask(TokenTask):
    """Large Movie Review Dataset. Its test set is what papers report on, so it is the dev part here."""

    kind: Literal["imdb"]
    folder: Path
    """Holds train*.parquet and test*.parquet with `text` and `label`, or train/ and test/ with neg/ and pos/*.txt."""
    sequence_length: int = Field(512, ge=8, le=65535)
    """Tokens of a review, at most; its end is cut off."""

    @property
    def head(self) -> TaskHead:
        return TaskHead("label", 2, NAMES)

    def files(self) -> dict[str, list[str]]:
        return {"folder": [str(self.folder)]}

    def open(self, part: str) -> Labelled:
        return open_labelled(self, part, ("accuracy",))

    def examples(self, part: str) -> list[Example]:
        name = "train" if part == "train" else "test"
        if files := sorted(self.folder.glob(f"{name}*.parquet")):
            lines = [line for file in files for line in tables.read(file)]
            examples = [Example(at.where, _clean(at.text("text")), None, at.number_of("label", NAMES)) for at in lines]
        else:
            examples = list(self._from_folders(name))
        refuse_empty(examples, f"{self.folder}/{name}")
        return examples

    def _from_folders(self, name: str) -> list[Example]:
        found = []
        for number, label in enumerate(NAMES):
            files = sorted((self.folder / name / label).glob("*.txt"))
            if not files:
                raise UserError(
                    f"task.folder: {self.folder} has no {name} set of IMDb",
                    f"looked for {name}*.parquet and {name}/{label}/*.txt",
                    tables.there_is(self.folder) + "give the unpacked aclImdb, or a copy of the hub's stanfordnlp/imdb",
                )
            found += [Example(f"{file}:1", _clean(file.read_text(encoding="utf-8")), None, number) for file in files]
        return found


def _clean(text: str) -> str:
    """Reviews were scraped with their line breaks."""
    return text.replace("<br />", " ")
