"""RACE (Lai et al. 2017): which of four answers to a question on an article is right; original files or the hub's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.core.types import AnswerKind
from megadistill.data.tokenization import Tokenizer, load_tokenizer
from megadistill.models.heads import TaskHead
from megadistill.tasks import metrics, tables
from megadistill.tasks.base import TokenTask
from megadistill.tasks.encoding import Encoded, cut, frame, join, some
from megadistill.tasks.rows import TaskRows

LEVELS = ("middle", "high")
_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Question:
    """One question on one article."""

    where: str
    """FILE: questions[K], or FILE:row NUMBER."""
    id: str
    level: str
    article: str
    text: str
    options: tuple[str, ...]
    answer: int


class RaceTask(TokenTask):
    """An article, a question, and what may answer it. Each option is a row of its own, [CLS] article [SEP] question
    option [SEP], as in Patient-KD's code (Sun et al. 2019); the highest score wins."""

    kind: Literal["race"]
    folder: Path
    """Holds train/, dev/ and test/ with middle/*.txt and high/*.txt, as RACE is published, or a copy of the hub's
    ehovy/race: all/, middle/ or high/ with train-*.parquet, validation-*.parquet, test-*.parquet."""
    level: Literal["all", "middle", "high"] = "all"
    """RACE, RACE-M or RACE-H."""
    choices: int = Field(4, ge=2, le=len(_LETTERS))
    """Options of a question; other data in RACE's format may have more or fewer."""
    sequence_length: int = Field(512, ge=8, le=65535)
    """Tokens of a row, at most; the longer of its two texts is cut first."""

    @property
    def asks(self) -> AnswerKind:
        return "choice"

    @property
    def head(self) -> TaskHead:
        return TaskHead("choice", self.choices, tuple(_LETTERS[: self.choices]))

    @property
    def dev_parts(self) -> tuple[str, ...]:
        return ("dev", "test")

    def files(self) -> dict[str, list[str]]:
        return {"folder": [str(self.folder)]}

    def look(self, part: str) -> None:
        self.questions(part)

    def open(self, part: str) -> RacePart:
        questions = self.questions(part)
        if part == "train":
            questions = some(questions, self.max_train_examples)
        return RacePart(questions, self.choices, load_tokenizer(self.tokenizer), self.sequence_length)

    def primary(self, scores: dict[str, dict[str, float]]) -> float:
        """Papers report the test set."""
        return scores["test"]["accuracy"]

    def questions(self, part: str) -> list[Question]:
        """All questions of a part, article by article.

        Raises:
            UserError: no such files, or one that is not as published; names the place.
        """
        levels = LEVELS if self.level == "all" else (self.level,)
        files = [(file, level) for level in levels for file in sorted((self.folder / part / level).glob("*.txt"))]
        if files:
            found = [question for file, level in files for question in self._of_article(file, level)]
        else:
            found = list(self._from_hub(part, levels))
        if not found:
            raise UserError(
                f"task.folder: {self.folder} has no {part} set of RACE",
                f"looked for {part}/{levels[0]}/*.txt and {self.level}/{_HUB[part]}-*.parquet",
                tables.there_is(self.folder) + "give the unpacked RACE, or a copy of the hub's ehovy/race",
            )
        return found

    def _of_article(self, file: Path, level: str) -> Iterator[Question]:
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise UserError(f"{file}:{error.lineno}: not JSON", error.msg, "get it again") from None
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read {file}", str(error), "get it again") from None
        try:
            article, parts = tree["article"], (tree["questions"], tree["options"], tree["answers"])
            name = str(tree.get("id", file.name))
            sizes = [len(part) for part in parts]
        except (KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise UserError(f"{file}: not as RACE's files are", reason, "get it again") from None
        if len(set(sizes)) > 1:
            told = ", ".join(f"{size} {what}" for size, what in zip(sizes, _PARTS, strict=True))
            raise UserError(f"{file}: {told}", "each question needs its options and its answer", "mend or remove it")
        for number, (text, options, answer) in enumerate(zip(*parts, strict=True)):
            yield self._checked(
                f"{file}: questions[{number}]", f"{name}-{number}", level, article, text, options, answer
            )

    def _from_hub(self, part: str, levels: Sequence[str]) -> Iterator[Question]:
        name = f"{_HUB[part]}-*.parquet"
        files = sorted((self.folder / self.level).glob(name))
        files = files or [file for level in levels for file in sorted((self.folder / level).glob(name))]
        for file in files:
            for line in tables.read(file):
                article, question, answer = (line.text(column) for column in ("article", "question", "answer"))
                own, options = str(line.cells.get("example_id", "")), line.cells.get("options")
                level = next((level for level in LEVELS if own.startswith(level)), file.parent.name)
                yield self._checked(line.where, f"{own}-{line.where}", level, article, question, options, answer)

    def _checked(
        self, where: str, name: str, level: str, article: Any, text: Any, options: Any, answer: Any
    ) -> Question:
        if not isinstance(article, str) or not article.strip():
            raise UserError(f"{where}: the article is empty", f"found {article!r}", "mend or remove it")
        if not isinstance(text, str):
            raise UserError(f"{where}: no question", f"found {text!r}", "mend or remove it")
        given = list(options) if isinstance(options, list | tuple) else []
        if len(given) != self.choices or not all(isinstance(one, str) for one in given):
            raise UserError(
                f"{where}: {len(given)} option(s), and task.choices is {self.choices}",
                f"found {options!r}",
                "mend or remove the question, or set task.choices",
            )
        letter = str(answer).strip().upper()
        if len(letter) != 1 or letter not in _LETTERS[: self.choices]:
            raise UserError(
                f"{where}: {answer!r} is no answer", f"there are {', '.join(_LETTERS[: self.choices])}", "mend it"
            )
        return Question(where, name, level, article, text, tuple(given), _LETTERS.index(letter))


_PARTS = ("questions", "options", "answers")
_HUB = {"train": "train", "dev": "validation", "test": "test"}


class RacePart:
    """Questions, and as many rows for each as it has options."""

    def __init__(self, questions: Sequence[Question], choices: int, tokenizer: Tokenizer, length: int) -> None:
        self.questions, self.choices = questions, choices
        special, separators = tokenizer.special, tokenizer.pair_separators
        articles = list(dict.fromkeys(question.article for question in questions))
        of_article = dict(zip(articles, tokenizer.encode_batch(articles), strict=True))
        asked = tokenizer.encode_batch([question.text for question in questions])
        options = iter(tokenizer.encode_batch([option for question in questions for option in question.options]))
        rows: list[NDArray[np.int32]] = []
        splits: list[int] = []
        truncated = 0
        for question, text in zip(questions, asked, strict=True):
            article = of_article[question.article]
            for _ in range(choices):
                ending = [*text, *next(options)]
                a, b = cut(len(article), len(ending), length, special, separators)
                truncated += a < len(article) or b < len(ending)
                row, split = frame(article[:a], ending[:b], special, separators)
                rows.append(np.array(row, dtype=np.int32))
                splits.append(split)
        answers = np.array([question.answer for question in questions], dtype=np.float64)
        counts = np.bincount(answers.astype(np.int64), minlength=choices)
        self.encoded: Encoded = join("choice", rows, splits, answers, special.padding, truncated, counts, choices)
        self.rows = TaskRows(self.encoded, length)

    def score(self, outputs: list[NDArray[np.float32]]) -> tuple[dict[str, float], list[Any]]:
        """Accuracy over all questions and, where there are both, over those of middle and of high schools."""
        predicted = np.stack(outputs).argmax(-1)
        truth, levels = self.encoded.answers, np.array([question.level for question in self.questions])
        scores = {"accuracy": metrics.accuracy(truth, predicted)}
        for level in LEVELS if len(set(levels)) > 1 else ():
            scores[f"accuracy_{level}"] = metrics.accuracy(truth[levels == level], predicted[levels == level])
        shown = zip(self.questions, predicted, strict=True)
        return scores, [{"id": question.id, "answer": _LETTERS[number]} for question, number in shown]
