"""GLUE (Wang et al. 2019): its nine tasks, from the original TSV files or from the hub's `nyu-mll/glue`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megadistill.core.errors import UserError
from megadistill.core.types import AnswerKind
from megadistill.models.heads import TaskHead
from megadistill.tasks import tables
from megadistill.tasks.base import TokenTask
from megadistill.tasks.encoding import Example, refuse_empty
from megadistill.tasks.labelled import Labelled, open_labelled
from megadistill.tasks.tables import Line


@dataclass(frozen=True)
class _Set:
    """One task's files, columns and metrics."""

    folder: str
    """Of the original files; the hub's is the task's own name."""
    columns: tuple[str, ...]
    """Of the original text, or texts."""
    label: str
    names: tuple[str, ...]
    """Of the classes in the hub's order; none: a rating."""
    metrics: tuple[str, ...] = ("accuracy",)
    spelt: bool = False
    """Original files spell the class out; else they give its number."""
    hub_columns: tuple[str, ...] | None = None
    dev: tuple[str, ...] = ("dev",)
    header: tuple[str, ...] | None = None
    """Of original files without one."""


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

SETS: dict[str, _Set] = {
    "cola": _Set(
        "CoLA",
        ("sentence",),
        "label",
        ("unacceptable", "acceptable"),
        ("matthews",),
        header=("source", "label", "original", "sentence"),
    ),
    "sst2": _Set("SST-2", ("sentence",), "label", ("negative", "positive")),
    "mrpc": _Set(
        "MRPC",
        ("#1 String", "#2 String"),
        "Quality",
        ("not_equivalent", "equivalent"),
        ("accuracy", "f1"),
        hub_columns=_PAIR,
    ),
    "stsb": _Set("STS-B", _PAIR, "score", (), ("pearson", "spearman")),
    "qqp": _Set("QQP", ("question1", "question2"), "is_duplicate", ("not_duplicate", "duplicate"), ("accuracy", "f1")),
    "mnli": _Set(
        "MNLI",
        _PAIR,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        spelt=True,
        hub_columns=("premise", "hypothesis"),
        dev=("dev_matched", "dev_mismatched"),
    ),
    "qnli": _Set("QNLI", ("question", "sentence"), "label", _ENTAILMENT, spelt=True),
    "rte": _Set("RTE", _PAIR, "label", _ENTAILMENT, spelt=True),
    "wnli": _Set("WNLI", _PAIR, "label", ("not_entailment", "entailment")),
}

Name = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]


class GlueTask(TokenTask):
    """One of GLUE's tasks. Its published test sets have no labels; scores are on the dev set."""

    kind: Literal["glue"]
    name: Name
    """Which of the nine tasks."""
    folder: Path
    """Holds the tasks' folders: SST-2/train.tsv as GLUE's own download lays them out, or sst2/train-*.parquet as the
    hub does; or the one task's files themselves."""
    train_file: str = "train.tsv"
    """Of the original layout; an augmented one beside it may be named instead."""
    skip_short_lines: bool = False
    """Leave out lines of a TSV that lack columns (GLUE's own QQP has some) instead of refusing the file."""

    @property
    def asks(self) -> AnswerKind:
        return "label" if SETS[self.name].names else "value"

    @property
    def head(self) -> TaskHead:
        names = SETS[self.name].names
        return TaskHead("label", len(names), names) if names else TaskHead("value", 1)

    @property
    def dev_parts(self) -> tuple[str, ...]:
        return SETS[self.name].dev

    def files(self) -> dict[str, list[str]]:
        return {"folder": [str(self.folder)]}

    def open(self, part: str) -> Labelled:
        return open_labelled(self, part, SETS[self.name].metrics)

    def examples(self, part: str) -> list[Example]:
        files, from_hub = self._files(part)
        examples = [self._example(line, from_hub) for file in files for line in self._read(file, from_hub)]
        refuse_empty(examples, ", ".join(map(str, files)))
        return examples

    @property
    def _places(self) -> list[tuple[Path, bool]]:
        """Where its files may be, and whether they are the hub's."""
        one = SETS[self.name]
        return [
            (self.folder / one.folder, False),
            (self.folder / self.name, True),
            (self.folder, False),
            (self.folder, True),
        ]

    def _files(self, part: str) -> tuple[list[Path], bool]:
        original = self.train_file if part == "train" else f"{part}.tsv"
        hub = "train" if part == "train" else part.replace("dev", "validation")
        for folder, from_hub in self._places:
            if from_hub and (found := sorted(folder.glob(f"{hub}-*.parquet"))):
                return found, True
            if not from_hub and (folder / original).is_file():
                return [folder / original], False
        raise UserError(
            f"task.folder: {self.folder} has no {part} set of {self.name}",
            f"looked for {SETS[self.name].folder}/{original} and {self.name}/{hub}-*.parquet",
            (tables.there_is(self.folder) or tables.there_is(self.folder / SETS[self.name].folder / original))
            + "give the folder that GLUE's download script fills, or a copy of the hub's "
            "nyu-mll/glue",
        )

    def _read(self, file: Path, from_hub: bool) -> list[Line]:
        header = None if from_hub else SETS[self.name].header
        return list(tables.read(file, header, self.skip_short_lines))

    def _example(self, line: Line, from_hub: bool) -> Example:
        one = SETS[self.name]
        columns = (one.hub_columns or one.columns) if from_hub else one.columns
        texts = [line.text(column) for column in columns]
        label = "label" if from_hub else one.label
        if not one.names:
            answer = line.value_of(label)
        elif from_hub or one.spelt:
            answer = line.number_of(label, one.names)
        else:
            answer = line.number_of(label, [str(number) for number in range(len(one.names))])
        return Example(line.where, texts[0], texts[1] if len(texts) > 1 else None, answer)
