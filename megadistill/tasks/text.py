"""Any classification or rating of texts or pairs of texts, from TSV, CSV, JSON lines or parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from megadistill.core.errors import UserError
from megadistill.core.types import AnswerKind
from megadistill.models.heads import TaskHead
from megadistill.tasks import tables
from megadistill.tasks.base import TokenTask
from megadistill.tasks.encoding import Example, refuse_empty
from megadistill.tasks.labelled import Labelled, open_labelled
from megadistill.tasks.tables import Line

Metric = Literal["accuracy", "f1", "macro_f1", "matthews", "pearson", "spearman"]


class TextTask(TokenTask):
    """Files with a column of text, or two, and one of labels or numbers."""

    kind: Literal["text"]
    train: list[str] = Field(min_length=1)
    """Files or patterns; .tsv (unquoted), .csv, .jsonl or .parquet."""
    dev: list[str] = Field(min_length=1)
    """As `train`: what it is scored on."""
    text: str = "text"
    """The column of the text."""
    pair: str | None = None
    """The column of a second text; None: there is none."""
    label: str = "label"
    """The column of the answer."""
    labels: list[str] | None = Field(None, min_length=2)
    """Names of the classes in order; a cell holds a name or its number from 0. None: the names in the training files,
    sorted."""
    regression: bool = False
    """The answers are numbers."""
    metrics: list[Metric] = Field(default_factory=list)
    """None given: accuracy, or pearson and spearman for numbers. f1 is of the second of two classes."""

    @model_validator(mode="after")
    def _metrics_suit_the_answers(self) -> TextTask:
        of_numbers = {"pearson", "spearman"}
        wrong = [name for name in self.metrics if (name in of_numbers) != self.regression]
        if wrong:
            raise ValueError(
                f"metrics: {', '.join(wrong)} cannot measure {'numbers' if self.regression else 'classes'}"
            )
        if self.regression and self.labels:
            raise ValueError("labels: numbers have none; leave out labels, or regression")
        if self.labels and self._too_many(self.labels):
            raise ValueError(f"metrics: f1 is of two classes, and there are {len(self.labels)}; use macro_f1")
        return self

    def _too_many(self, names: Sequence[str]) -> bool:
        return "f1" in self.metrics and len(names) > 2

    @property
    def asks(self) -> AnswerKind:
        return "value" if self.regression else "label"

    @property
    def head(self) -> TaskHead:
        return TaskHead("value", 1) if self.regression else TaskHead("label", len(self._names), self._names)

    def files(self) -> dict[str, list[str]]:
        return {"train": self.train, "dev": self.dev}

    def known_head(self, here: bool) -> TaskHead | None:
        return self.head if here or self.regression or self.labels else None

    def open(self, part: str) -> Labelled:
        return open_labelled(self, part, self.metrics or (["pearson", "spearman"] if self.regression else ["accuracy"]))

    def examples(self, part: str) -> list[Example]:
        examples = [self._example(line) for line in self._lines(part)]
        refuse_empty(examples, f"task.{part}")
        return examples

    def _lines(self, part: str) -> Iterator[Line]:
        for file in tables.find(self.train if part == "train" else self.dev, f"task.{part}"):
            for number, line in enumerate(tables.read(file)):
                if not number:
                    self._refuse_other_columns(file, line)
                yield line

    def _refuse_other_columns(self, file: Path, line: Line) -> None:
        for field in ("text", "pair", "label"):
            column = getattr(self, field)
            if column is not None and column not in line.cells:
                near = get_close_matches(column, [str(cell) for cell in line.cells], n=1)
                raise UserError(
                    f"task.{field}: {file} has no column {column!r}",
                    f"it has {', '.join(map(str, line.cells)) or 'none'}",
                    f"did you mean {near[0]!r}?" if near else f"name the right one in task.{field}",
                )

    def _example(self, line: Line) -> Example:
        second = None if self.pair is None else line.text(self.pair)
        answer = line.value_of(self.label) if self.regression else line.number_of(self.label, self._names)
        return Example(line.where, line.text(self.text), second, answer)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        if self.labels is not None:
            return tuple(self.labels)
        found: dict[str, str] = {}
        for line in self._lines("train"):
            value = line.cells.get(self.label)
            if value is None or str(value).strip() == "":
                raise UserError(
                    f"{line.where}: no label in column {self.label!r}", f"found {value!r}", "mend that line"
                )
            found.setdefault(str(value).strip(), line.where)
        if len(found) < 2:
            raise UserError(
                "task.train: the labels are all the same",
                f"column {self.label!r} holds {', '.join(found) or 'nothing'}",
                "name another column, or list task.labels",
            )
        if len(found) > 1000:
            raise UserError(
                f"task.train: {len(found):,} different labels",
                f"column {self.label!r}, such as {', '.join(list(found)[:4])}",
                "name another column, list task.labels, or set task.regression for numbers",
            )
        if self._too_many(list(found)):
            raise UserError(
                f"task.metrics: f1 is of two classes, and there are {len(found)}",
                ", ".join(list(found)[:8]),
                "use macro_f1",
            )
        return tuple(sorted(found))
