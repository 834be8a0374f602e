"""SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018): spans of a paragraph, read through sliding windows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from megadistill.core.errors import UserError
from megadistill.core.types import AnswerKind
from megadistill.data.tokenization import Tokenizer, load_tokenizer
from megadistill.models.heads import TaskHead
from megadistill.tasks import tables
from megadistill.tasks.base import TokenTask
from megadistill.tasks.encoding import Encoded, frame, join, some
from megadistill.tasks.rows import TaskRows
from megadistill.tasks.squad_metrics import score_1, score_2


@dataclass(frozen=True)
class Question:
    """One question on one paragraph."""

    where: str
    """Of its file: FILE: data[I].paragraphs[J].qas[K]."""
    id: str
    text: str
    context: str
    answers: tuple[tuple[int, str], ...]
    """(first character, text); none where SQuAD 2.0 says that there is none."""


@dataclass(frozen=True)
class Window:
    """Which characters of a question's context the tokens of a row stand for."""

    question: int
    begin: int
    """Position in the row of the first token of the context."""
    offsets: NDArray[np.int64]
    """[tokens of the context, 2] first and last character + 1."""


class SquadTask(TokenTask):
    """A question and a paragraph; the answer is where it starts and where it ends. Position 0, [CLS], is the answer of
    a window that does not hold it, and, in SQuAD 2.0, of a question that has none."""

    kind: Literal["squad"]
    train: Path
    """SQuAD's JSON."""
    dev: Path
    """As `train`: what it is scored on."""
    version: Literal["1.1", "2.0"] = "1.1"
    """2.0 has questions without an answer."""
    sequence_length: int = Field(384, ge=8, le=65535)
    """Tokens of a window: a question and a piece of its paragraph."""
    stride: int = Field(128, gt=0)
    """By how many tokens of the paragraph one window comes after another."""
    max_question: int = Field(64, gt=0)
    """Tokens; longer questions lose their end."""
    max_answer: int = Field(30, gt=0)
    """Tokens of a predicted answer."""
    num_best: int = Field(20, gt=0)
    """Starts and ends of each window that are considered."""
    no_answer_threshold: float = 0.0
    """SQuAD 2.0: no answer is predicted when it scores this much better than the best answer."""

    @field_validator("version", mode="before")
    @classmethod
    def _yaml_reads_a_number(cls, given: Any) -> Any:
        return str(given) if isinstance(given, float) else given

    @model_validator(mode="after")
    def _a_window_has_room(self) -> SquadTask:
        room = self.sequence_length - self.max_question - 3
        if room < self.stride:
            raise ValueError(
                f"stride: {self.stride}, and beside a question of max_question {self.max_question} a row of "
                f"{self.sequence_length} has room for {max(room, 0)} tokens of the paragraph, so some would not be read"
            )
        return self

    @property
    def asks(self) -> AnswerKind:
        return "span"

    @property
    def head(self) -> TaskHead:
        return TaskHead("span", 2)

    def files(self) -> dict[str, list[str]]:
        return {"train": [str(self.train)], "dev": [str(self.dev)]}

    def look(self, part: str) -> None:
        self._questions(part)

    def _questions(self, part: str) -> list[Question]:
        path = self.train if part == "train" else self.dev
        if not path.is_file():
            fix = tables.there_is(path) + "check the path; it is relative to where you are"
            raise UserError(f"task.{part}: no file {path}", "", fix)
        return read(path, self.version)

    def open(self, part: str) -> SquadPart:
        questions = self._questions(part)
        if part == "train":
            chosen = some(list(range(len(questions))), self.max_train_examples)
            questions = [questions[number] for number in chosen]
        return SquadPart(self, questions, load_tokenizer(self.tokenizer))

    def primary(self, scores: dict[str, dict[str, float]]) -> float:
        return scores["dev"]["f1"]


class SquadPart:
    """Questions, and the windows that are their rows."""

    def __init__(self, task: SquadTask, questions: Sequence[Question], tokenizer: Tokenizer) -> None:
        special = tokenizer.special
        if special.cls is None or special.sep is None:
            raise UserError(
                f"task.tokenizer {task.tokenizer} has no [CLS] and [SEP]",
                "the first position stands for a window without the answer",
                "use a tokenizer of a BERT-like model",
            )
        self.task, self.questions = task, questions
        self.windows: list[Window] = []
        rows: list[list[int]] = []
        answers: list[tuple[int, int]] = []
        separators = tokenizer.pair_separators
        for number, (question, asked, tokens, offsets) in enumerate(_tokenized(questions, tokenizer)):
            asked = asked[: task.max_question]
            room = task.sequence_length - len(asked) - 2 - separators
            for start, stop in _cuts(len(tokens), room, min(task.stride, room)):
                row, begin = frame(asked, tokens[start:stop], special, separators)
                window = Window(number, begin, offsets[start:stop])
                self.windows.append(window)
                rows.append(row)
                answers.append(_labelled(window, question))
        spans = np.array(answers, dtype=np.float64).reshape(-1, 2)
        self.encoded: Encoded = join("span", rows, [w.begin for w in self.windows], spans, special.padding)
        self.rows = TaskRows(self.encoded, task.sequence_length)

    def score(self, outputs: list[NDArray[np.float32]]) -> tuple[dict[str, float], list[Any]]:
        """For each question the best span of all its windows; positions of the question are never answers."""
        best: dict[int, tuple[float, str]] = {}
        null: dict[int, float] = {}
        for window, logits in zip(self.windows, outputs, strict=True):
            number, context = window.question, self.questions[window.question].context
            nothing = float(logits[0].sum())
            null[number] = min(nothing, null.get(number, nothing))
            found = _best_span(logits[window.begin :][: len(window.offsets)], self.task.num_best, self.task.max_answer)
            if found is not None and found[0] > best.get(number, (-np.inf, ""))[0]:
                score, first, last = found
                best[number] = score, context[window.offsets[first, 0] : window.offsets[last, 1]]
        predictions = {}
        for number, question in enumerate(self.questions):
            score, text = best.get(number, (-np.inf, ""))
            declined = self.task.version == "2.0" and null[number] - score > self.task.no_answer_threshold
            predictions[question.id] = "" if declined else text
        golds = {question.id: [text for _, text in question.answers] for question in self.questions}
        scores = score_1(predictions, golds) if self.task.version == "1.1" else score_2(predictions, golds)
        return scores, [{"id": name, "answer": text} for name, text in predictions.items()]


def read(path: Path, version: str) -> list[Question]:
    """The questions of a SQuAD file.

    Raises:
        UserError: no such file, no JSON, no questions, or one whose answers are not in its context; names the place.
    """
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}", str(error), "give SQuAD's train or dev JSON") from None
    except ValueError as error:  # JSONDecodeError names line and column
        raise UserError(f"{path} is not JSON", str(error), "get it again") from None
    questions = list(_questions(path, tree, version))
    if not questions:
        raise UserError(f"{path} has no questions", "", "give SQuAD's train or dev JSON")
    twice = len(questions) - len({question.id for question in questions})
    if twice:
        raise UserError(f"{path}: {twice} question(s) have the id of another", "answers are told apart by it")
    return questions


def _questions(path: Path, tree: Any, version: str) -> Iterator[Question]:
    where = str(path)
    try:
        for i, article in enumerate(tree["data"]):
            for j, paragraph in enumerate(article["paragraphs"]):
                where = f"{path}: data[{i}].paragraphs[{j}]"
                context = paragraph["context"]
                for k, asked in enumerate(paragraph["qas"]):
                    where = f"{path}: data[{i}].paragraphs[{j}].qas[{k}]"
                    answers = tuple((int(a["answer_start"]), str(a["text"])) for a in asked["answers"])
                    yield _checked(Question(where, str(asked["id"]), str(asked["question"]), context, answers), version)
    except (KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"{where}: not as SQuAD's files are", reason, "give SQuAD's train or dev JSON") from None


def _checked(question: Question, version: str) -> Question:
    where = question.where
    if not question.context.strip():
        raise UserError(f"{where}: the paragraph is empty", f"question {question.id}", "mend or remove it")
    if not question.text.strip():
        raise UserError(f"{where}: the question is empty", f"question {question.id}", "mend or remove it")
    if not question.answers and version == "1.1":
        raise UserError(f"{where}: no answer", f"question {question.id}", 'set task.version: "2.0", or remove it')
    for start, text in question.answers:
        there = question.context[start : start + len(text)] if start >= 0 else ""
        if there != text or not text.strip():
            raise UserError(
                f"{where}: the answer {text[:60]!r} is not in the paragraph at character {start}",
                f"there is {there[:60]!r}; question {question.id}",
                "mend its answer_start, or remove the question",
            )
    return question


def _tokenized(
    questions: Sequence[Question], tokenizer: Tokenizer
) -> Iterator[tuple[Question, list[int], list[int], NDArray[np.int64]]]:
    """(question, its ids, ids of its context, their characters [n, 2]); each context is encoded once."""
    contexts = list(dict.fromkeys(question.context for question in questions))
    encodings = dict(zip(contexts, tokenizer.backend.encode_batch(contexts, add_special_tokens=False), strict=True))
    asked = tokenizer.encode_batch([question.text for question in questions])
    for question, ids in zip(questions, asked, strict=True):
        encoding = encodings[question.context]
        if not encoding.ids:
            raise UserError(f"{question.where}: the paragraph has no tokens", f"question {question.id}", "remove it")
        yield question, ids, encoding.ids, np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)


def _cuts(length: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Windows [start, stop) of at most `room` tokens, each `stride` after the one before, until the end is in one."""
    start = 0
    while True:
        stop = min(start + room, length)
        yield start, stop
        if stop == length:
            return
        start += stride


def _labelled(window: Window, question: Question) -> tuple[int, int]:
    """First and last position of the first gold answer; (0, 0) where the window does not hold all of it."""
    if not question.answers:
        return 0, 0
    start, text = question.answers[0]
    stop = start + len(text)
    if not (window.offsets[0, 0] <= start and stop <= window.offsets[-1, 1]):
        return 0, 0
    touched = np.flatnonzero((window.offsets[:, 1] > start) & (window.offsets[:, 0] < stop))
    if not len(touched):
        return 0, 0
    return window.begin + int(touched[0]), window.begin + int(touched[-1])


def _best_span(logits: NDArray[np.float32], num_best: int, longest: int) -> tuple[float, int, int] | None:
    """(score, first, last) of the best pair among the best starts and ends; `logits` is [tokens, 2]."""
    starts, ends = (np.argsort(-logits[:, side], kind="stable")[:num_best] for side in (0, 1))
    scores = logits[starts, 0][:, None].astype(np.float64) + logits[ends, 1][None, :]
    lengths = ends[None, :] - starts[:, None] + 1
    scores = np.where((lengths >= 1) & (lengths <= longest), scores, -np.inf)
    index = int(np.argmax(scores))
    first, last = divmod(index, len(ends))
    if not np.isfinite(scores[first, last]):
        return None
    return float(scores[first, last]), int(starts[first]), int(ends[last])
