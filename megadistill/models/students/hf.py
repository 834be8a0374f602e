"""A student of any transformers architecture, from scratch, from a folder, or from its teacher's layers."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.core.schema import OneOf
from megadistill.models.initialize import (
    Folder,
    Initialize,
    Random,
    TeacherLayers,
    copy_teacher_layers,
    seeded,
)
from megadistill.models.loading import load_pretrained
from megadistill.models.signals import LanguageModel
from megadistill.models.students.base import Student


class HFStudent(Student):
    """A transformers language model: masked where `data.targets` is mlm, causal where it is clm."""

    kind: Literal["hf"]
    architecture: str | None = None
    """A transformers model type (bert, distilbert, roberta, gpt2, ...); None: the teacher's own, with its config."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of that architecture's config that differ from its defaults (or from the teacher's)."""
    init: OneOf[Initialize] = Random()

    def fetch(self) -> None:
        if isinstance(self.init, Folder):
            load_pretrained(self.init.path)

    def build(self, teacher: LanguageModel | None, vocabulary_size: int, causal: bool, seed: int) -> LanguageModel:
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

        if isinstance(self.init, Folder) and self.architecture is None:
            return load_pretrained(self.init.path)
        config = self._config(teacher, vocabulary_size)
        auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
        try:
            with seeded(seed):
                student = LanguageModel(auto.from_config(config))
        except ValueError as error:
            raise UserError(
                f"{config.model_type} has no {'causal' if causal else 'masked'} language model",
                str(error).splitlines()[0],
                "choose another student.architecture or data.targets",
            ) from None
        if isinstance(self.init, TeacherLayers):
            if teacher is None:
                raise UserError("student.init takes the teacher's layers, and there is no teacher", "teacher: null")
            copy_teacher_layers(student.hf, teacher.hf, self.init.layers)
        elif isinstance(self.init, Folder):
            loaded = load_pretrained(self.init.path).hf
            copy_teacher_layers(student.hf, loaded, list(range(loaded.config.num_hidden_layers)))
        return student

    def _config(self, teacher: LanguageModel | None, vocabulary_size: int) -> Any:
        from transformers import AutoConfig

        if self.architecture is None:
            if teacher is None:
                raise UserError(
                    "student.architecture is empty and there is no teacher to take it from",
                    fix="name one, such as bert or gpt2",
                )
            base = teacher.hf.config
            self._refuse_unknown(base, base.model_type)
            return type(base).from_dict({**base.to_dict(), **self.config})
        try:
            defaults = AutoConfig.for_model(self.architecture)
        except ValueError:
            raise UserError(
                f"student.architecture: transformers knows no model type {self.architecture!r}",
                fix="for example bert, distilbert, roberta, gpt2",
            ) from None
        self._refuse_unknown(defaults, self.architecture)
        return AutoConfig.for_model(self.architecture, **{"vocab_size": vocabulary_size, **self.config})

    def _refuse_unknown(self, known: Any, architecture: str) -> None:
        """transformers keeps misspelt config fields silently."""
        unknown = [key for key in self.config if not hasattr(known, key)]
        if unknown:
            names = sorted(name for name in known.to_dict() if not name.startswith("_"))
            raise UserError(
                f"student.config: {architecture} has no field {', '.join(unknown)}",
                f"it has {', '.join(names)}",
            )
