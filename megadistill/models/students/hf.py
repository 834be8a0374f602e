"""A student of any transformers architecture, from scratch, from a folder, or from its teacher's layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from fnmatch import fnmatch
from typing import Any, Literal

import torch
from pydantic import Field

from megadistill.core.errors import UserError
from megadistill.core.schema import OneOf
from megadistill.models.heads import TaskHead
from megadistill.models.images import ImageModel, with_distillation_token
from megadistill.models.initialize import (
    Folder,
    Initialize,
    Random,
    TeacherLayers,
    chosen_layers,
    copy_teacher_layers,
    seeded,
)
from megadistill.models.loading import (
    config_with,
    first_line,
    load_empty,
    load_for_task,
    load_pretrained,
    refuse_other_view,
    task_class,
    wrapped,
)
from megadistill.models.signals import LanguageModel
from megadistill.models.students.base import Student


class HFStudent(Student):
    """A transformers language model: masked where `data.targets` is mlm, causal where it is clm. In a run with a `task`
    the same body under the task's head; in one on images a vision model, and `deit` has a distillation token. It is
    made in float32, whatever its teacher's or folder's dtype; `engine.precision` says in what it is trained.
    """

    kind: Literal["hf"]
    architecture: str | None = None
    """A transformers model type (bert, distilbert, roberta, gpt2, ...); None: the teacher's own, with its config, or
    that of the folder that it starts from."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of that architecture's config that differ from its defaults (or from the teacher's, or the folder's)."""
    init: OneOf[Initialize] = Random()
    """How its weights start."""
    freeze: list[str] = Field(default_factory=list)
    """Parameters that never change, by patterns of their transformers names: "*position_embeddings*" or "*.wte.*"."""

    def fetch(self) -> None:
        if isinstance(self.init, Folder):
            load_pretrained(self.init.path)

    def paths(self) -> list[str]:
        return [self.init.path] if isinstance(self.init, Folder) else []

    @property
    def starts_from_teacher(self) -> bool:
        return isinstance(self.init, TeacherLayers) or (self.architecture is None and not isinstance(self.init, Folder))

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
        return self._frozen(self._made(teacher, vocabulary_size, causal, seed, special, head))

    def empty(
        self,
        teacher: LanguageModel | None,
        vocabulary_size: int,
        causal: bool,
        special: Mapping[str, int | None] | None = None,
        head: TaskHead | None = None,
    ) -> LanguageModel:
        with torch.device("meta"):
            return self._frozen(self._made(teacher, vocabulary_size, causal, 0, special, head, empty=True))

    def _frozen(self, student: LanguageModel) -> LanguageModel:
        names = [name for name, _ in student.hf.named_parameters()]
        for pattern in self.freeze:
            found = [name for name in names if fnmatch(name, pattern)]
            if not found:
                raise UserError(
                    f"student.freeze: no parameter is named like {pattern!r}",
                    f"there are {', '.join(names[:6])}, ...",
                    "use * for what may stand there",
                )
            for name in found:
                student.hf.get_parameter(name).requires_grad_(False)
        if len({p for p in student.parameters() if p.requires_grad}) == 0:
            raise UserError("student.freeze leaves nothing to learn", f"{self.freeze}", "freeze less")
        return student

    def _made(
        self,
        teacher: LanguageModel | None,
        vocabulary_size: int,
        causal: bool,
        seed: int,
        special: Mapping[str, int | None] | None,
        head: TaskHead | None,
        empty: bool = False,
    ) -> LanguageModel:
        from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

        load: Callable[[str], LanguageModel] = load_empty if empty else load_pretrained

        if isinstance(self.init, Folder) and self.architecture is None and not self.config:
            if self.init.layers is not None:
                raise UserError(
                    "student.init.layers is set, and the student is the folder's model as it is",
                    f"student.init: {{kind: folder, path: {self.init.path}}} without student.config",
                    "give the student's depth in student.config, or remove student.init.layers",
                )
            if head is None:
                return load(self.init.path)
            return load_empty(self.init.path, head=head) if empty else load_for_task(self.init.path, head, seed)
        origin = load(self.init.path) if isinstance(self.init, Folder) else teacher
        config = self._config(origin, vocabulary_size, special or {})
        auto = AutoModelForCausalLM if causal else AutoModelForMaskedLM
        if head is not None:
            config, auto = config_with(config, head.config_fields()), task_class(head)
            if head.kind == "image":
                config = with_distillation_token(config)
                if hasattr(config, "image_size") and "image_size" not in self.config:
                    config.image_size = head.size
        if type(config) not in auto._model_mapping:
            what = f"model for a task's {head.kind}" if head else f"{'causal' if causal else 'masked'} language model"
            raise UserError(
                f"student.architecture: {config.model_type} has no {what}",
                fix="choose another one, or " + ("another task" if head else "other data.targets"),
            )
        try:
            with seeded(seed):
                hf = auto.from_config(config, dtype=torch.float32)  # the config may bring its teacher's own
            student = wrapped(hf, head.processor if head is not None else None)
        except UserError:
            raise
        except Exception as error:  # each architecture checks, or divides by, its fields in its own way
            raise self._no_model(config.model_type, error) from error
        if isinstance(self.init, TeacherLayers):
            if teacher is None:
                raise UserError("student.init takes the teacher's layers, and there is no teacher", "teacher: null")
            if not teacher.dims.layers:
                raise UserError(
                    "student.init takes the teacher's layers",
                    f"{type(teacher.hf).__name__} is no stack of equal ones",
                    "use student.init: {kind: random} or {kind: folder, ...}",
                )
            copy_teacher_layers(student.hf, teacher.hf, self.init.layers, self.init.width)
        elif isinstance(self.init, Folder):
            assert origin is not None
            if isinstance(origin, ImageModel) and head is not None:
                refuse_other_view(self.init.path, origin.processor, head.processor)
            layers = self.init.layers or list(range(origin.hf.config.num_hidden_layers))
            copy_teacher_layers(student.hf, origin.hf, layers)
        return student

    def _config(self, origin: LanguageModel | None, vocabulary_size: int, special: Mapping[str, int | None]) -> Any:
        from transformers import AutoConfig

        if self.architecture is None:
            if origin is None:
                raise UserError(
                    "student.architecture is empty and there is no teacher to take it from",
                    fix="name one, such as bert or gpt2",
                )
            base = origin.hf.config
            self._refuse_unknown(base, base.model_type)
            changed = {getattr(base, "attribute_map", {}).get(name, name): value for name, value in self.config.items()}
            fields = {**base.to_dict(), **self._layer_types(base), **changed}
            return self._checked(base.model_type, type(base).from_dict, fields)
        try:
            defaults = AutoConfig.for_model(self.architecture)
        except ValueError:
            raise UserError(
                f"student.architecture: transformers knows no model type {self.architecture!r}",
                fix="for example bert, distilbert, roberta, gpt2",
            ) from None
        self._refuse_unknown(defaults, self.architecture)
        size = {"vocab_size": vocabulary_size} if hasattr(defaults, "vocab_size") else {}
        fields = {**size, **_special_fields(defaults, special, vocabulary_size), **self.config}
        return self._checked(self.architecture, lambda given: AutoConfig.for_model(self.architecture, **given), fields)

    def _layer_types(self, base: Any) -> dict[str, Any]:
        """The kinds of attention of the layers that a shallower student takes, where layers differ in it."""
        types = getattr(base, "layer_types", None)
        depth = self.config.get(getattr(base, "attribute_map", {}).get("num_hidden_layers", ""))
        depth = self.config.get("num_hidden_layers", depth)
        if not types or not isinstance(depth, int) or "layer_types" in self.config:
            return {}
        choice = self.init.layers if isinstance(self.init, Folder | TeacherLayers) else None
        return {"layer_types": [types[layer] for layer in chosen_layers(choice or "uniform", depth, len(types))]}

    def _checked(self, architecture: str, make: Callable[[dict[str, Any]], Any], fields: dict[str, Any]) -> Any:
        try:
            return make(fields)
        except Exception as error:  # huggingface_hub's dataclasses raise their own, with no common base
            raise self._no_model(architecture, error) from error

    def _no_model(self, architecture: str, error: Exception) -> UserError:
        return UserError(
            f"student.config: no {architecture} can be made with {self.config}",
            first_line(error),
            "give sizes that fit together, of the right types",
        )

    def _refuse_unknown(self, known: Any, architecture: str) -> None:
        """transformers keeps misspelt config fields silently."""
        unknown = [key for key in self.config if not hasattr(known, key)]
        if unknown:
            names = sorted(name for name in known.to_dict() if not name.startswith("_"))
            near = [name for key in unknown for name in get_close_matches(key, names, n=1)]
            raise UserError(
                f"student.config: {architecture} has no field {', '.join(unknown)}",
                "" if near else f"it has {', '.join(names)}",
                f"did you mean {', '.join(near)}?" if near else "mend the name",
            )


def _special_fields(defaults: Any, special: Mapping[str, int | None], vocabulary_size: int) -> dict[str, int | None]:
    """The tokenizer's ids under the config's names: an architecture's own defaults are another tokenizer's ids, and
    none at all where the vocabulary does not reach to them."""
    sep, cls = special.get("sep"), special.get("cls")
    ids = {"pad_token_id": special.get("pad"), "bos_token_id": sep if cls is None else cls, "eos_token_id": sep}
    ids |= {"cls_token_id": cls, "sep_token_id": sep}
    known = {name: value for name, value in ids.items() if hasattr(defaults, name)}
    beyond = {name for name in known if (getattr(defaults, name) or 0) >= vocabulary_size}
    return {name: value for name, value in known.items() if value is not None or name in beyond}
