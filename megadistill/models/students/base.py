"""What a student is: a config that builds a trainable signal source."""

from __future__ import annotations

from collections.abc import Mapping

from megadistill.core.schema import Strict
from megadistill.core.types import Needs
from megadistill.models.heads import TaskHead
from megadistill.models.signals import LanguageModel


class Student(Strict):
    """Base of every student's config."""

    kind: str

    def fetch(self) -> None:
        """Bring here, while there is network, what `build` will read without; `prepare` calls it."""

    def paths(self) -> list[str]:
        """Folders, runs or hub names that it starts from, whose tokenizers must be the data's."""
        return []

    def files(self) -> dict[str, list[str]]:
        """Field -> the files that are read besides `paths`."""
        return {}

    def cannot(self, needs: Needs) -> str:
        """Why an objective that has such needs cannot teach it, and what can; empty where it can."""
        return ""

    @property
    def starts_from_teacher(self) -> bool:
        """Whether `build` reads the teacher's model."""
        return True

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
        """The student at step 0.

        Args:
            teacher: the teacher's model where it has one in the process, for shapes and initial weights.
            vocabulary_size: of the tokenizer.
            causal: whether targets are next tokens (clm) rather than masked ones (mlm).
            seed: for random initialisation.
            special: the tokenizer's ids by role (pad, cls, sep, mask, unk); None where it has no such token.
            head: what a task asks it for; None: tokens, and it is a language model.
            words: the tokenizer's ids by their spelling.
        """
        raise NotImplementedError

    def empty(
        self,
        teacher: LanguageModel | None,
        vocabulary_size: int,
        causal: bool,
        special: Mapping[str, int | None] | None = None,
        head: TaskHead | None = None,
    ) -> LanguageModel | None:
        """What `build` would make of a teacher without weights: its sizes, found out without any weight (on torch's
        meta device). None where that cannot be told; raises what `build` would."""
        return None
