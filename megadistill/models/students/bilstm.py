"""A single-layer bidirectional LSTM (Tang et al. 2019): a hundred times smaller and faster than its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from megadistill.core import log
from megadistill.core.errors import UserError
from megadistill.core.types import Needs
from megadistill.models.bilstm import register
from megadistill.models.heads import TaskHead
from megadistill.models.initialize import seeded
from megadistill.models.signals import LanguageModel
from megadistill.models.students.base import Student
from megadistill.models.vectors import read_vectors

Start = dict[int, Tensor] | Tensor | None
"""Embeddings of some ids, of all, or of none."""


class BiLSTMStudent(Student):
    """Both directions' last states, a layer with ReLU, and the classes (Tang et al. 2019, section 3.1). It learns the
    teacher's logits (`logits_mse`), and only in runs with a `task` of classes or numbers."""

    kind: Literal["bilstm"]
    hidden_size: int = Field(150, gt=0)
    """Of each direction."""
    inner_size: int = Field(200, gt=0)
    """Width of the layer before the classes."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Behind that layer."""
    multichannel: bool = True
    """Two copies of the word embeddings, of which one stays as it starts (Kim 2014)."""
    siamese: bool = False
    """Read the two texts of a pair apart, and compare: [a, b, a * b, |a - b|]."""
    embeddings: Literal["random", "teacher", "vectors"] = "random"
    """How word embeddings start: at random, as the teacher's (of its width), or from the file `vectors`."""
    embedding_size: int = Field(300, gt=0)
    """For random ones."""
    vectors: Path | None = None
    """Word vectors as text, `word number number ...` a line, as GloVe's; words that are one token of the tokenizer get
    theirs, and pieces of words start at random."""

    @model_validator(mode="after")
    def _vectors_are_there(self) -> BiLSTMStudent:
        if (self.embeddings == "vectors") != (self.vectors is not None):
            raise ValueError("vectors: give the file with embeddings: vectors, and only with it")
        return self

    def files(self) -> dict[str, list[str]]:
        return {} if self.vectors is None else {"vectors": [str(self.vectors)]}

    def cannot(self, needs: Needs) -> str:
        if needs.student_hidden | needs.teacher_hidden | needs.student_attention | needs.teacher_attention:
            return "it has no layers like its teacher's; use logits_mse or soft_ce with scope: targets"
        return ""

    def build(
        self,
        teacher: LanguageModel | None,
        vocabulary_size: int,
        causal: bool,
        seed: int,
        special: Mapping[str, int | None] | None = None,
        head: TaskHead | None = None,
        words: Mapping[str, int] | None = None,
    ) -> LanguageModel:
        start = self._start(teacher, words or {})
        return LanguageModel(self._model(start, vocabulary_size, seed, _asked(head)))

    def empty(
        self,
        teacher: LanguageModel | None,
        vocabulary_size: int,
        causal: bool,
        special: Mapping[str, int | None] | None = None,
        head: TaskHead | None = None,
    ) -> LanguageModel | None:
        asked = _asked(head)
        if self.embeddings == "vectors":  # their width is in the file
            return None
        with torch.device("meta"):
            return LanguageModel(self._model(self._start(teacher, {}), vocabulary_size, 0, asked))

    def _model(self, start: Start, vocabulary_size: int, seed: int, head: TaskHead) -> Any:
        config_class, model_class = register()
        width = self.embedding_size
        if start is not None:
            width = start.shape[1] if isinstance(start, Tensor) else next(iter(start.values())).shape[0]
        config = config_class(
            vocab_size=vocabulary_size,
            embedding_size=width,
            hidden_size=self.hidden_size,
            inner_size=self.inner_size,
            dropout=self.dropout,
            multichannel=self.multichannel,
            siamese=self.siamese,
            **head.config_fields(),
        )
        with seeded(seed):
            model = model_class(config)
        with torch.no_grad():
            table = model.bilstm.words.weight
            if isinstance(start, Tensor):
                table.copy_(start[:vocabulary_size])
            for number, vector in start.items() if isinstance(start, dict) else ():
                table[number] = vector
            if self.multichannel:
                model.bilstm.fixed.weight.copy_(table)
        return model

    def _start(self, teacher: LanguageModel | None, words: Mapping[str, int]) -> Start:
        if self.embeddings == "random":
            return None
        if self.embeddings == "vectors":
            assert self.vectors is not None
            return starts(self.vectors, words)
        if teacher is None:
            raise UserError("student.embeddings: teacher, and there is no teacher", "teacher: null", "use random")
        table: Tensor = teacher.hf.get_input_embeddings().weight
        return table.detach().float() if table.is_meta else table.detach().float().cpu()


def _asked(head: TaskHead | None) -> TaskHead:
    if head is None or head.kind not in ("label", "value"):
        raise UserError(
            "student.kind: bilstm gives one answer a row",
            f"the run asks for {'tokens' if head is None else f'a {head.kind}'}",
            "use it with a task of classes or numbers",
        )
    return head


def starts(path: Path, words: Mapping[str, int]) -> dict[int, Tensor]:
    """The vectors of those words that a file in GloVe's format holds, by their ids.

    Raises:
        UserError: no such file, a line that is no vector, or none of the words in it; names the line.
    """
    vectors = read_vectors(path, "student.vectors")
    found = {words[word]: torch.from_numpy(vector) for word, vector in vectors if word in words}
    if not found:
        raise UserError(f"{path} has no word of the tokenizer", f"{len(words):,} tokens", "is it of this language?")
    log.get().info(f"{len(found):,} of {len(words):,} tokens start from {path}")
    return found
