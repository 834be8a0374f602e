"""What a student is: a config that builds a trainable signal source."""

from __future__ import annotations

from collections.abc import Mapping

from megadistill.core.schema import Strict
from megadistill.models.signals import LanguageModel


class Student(Strict):
    """Base of every student's config."""

    kind: str

    def fetch(self) -> None:
        """Bring here, while there is network, what `build` will read without; `prepare` calls it."""

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
    ) -> LanguageModel:
        """The student at step 0.

        Args:
            teacher: the teacher's model where it has one in the process, for shapes and initial weights.
            vocabulary_size: of the tokenizer.
            causal: whether targets are next tokens (clm) rather than masked ones (mlm).
            seed: for random initialisation.
            special: the tokenizer's ids by role (pad, cls, sep, mask, unk); None where it has no such token.
        """
        raise NotImplementedError

    def empty(
        self,
        teacher: LanguageModel | None,
        vocabulary_size: int,
        causal: bool,
        special: Mapping[str, int | None] | None = None,
    ) -> LanguageModel | None:
        """What `build` would make of a teacher without weights: its sizes, found out without any weight (on torch's
        meta device). None where that cannot be told; raises what `build` would."""
        return None
