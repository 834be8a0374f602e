"""Any classification of images, from webdataset shards or one folder a class: DeiT's task (Touvron et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from megadistill.core.errors import UserError
from megadistill.core.types import AnswerKind
from megadistill.models.heads import TaskHead
from megadistill.models.images import default_processor, load_processor, view_of
from megadistill.tasks import image_files, tables
from megadistill.tasks.base import Task
from megadistill.tasks.encoding import some
from megadistill.tasks.image_files import Images
from megadistill.tasks.image_rows import Crops, ImageRows
from megadistill.tasks.metrics import accuracy


class ImageTask(Task):
    """Images with a class each. Every model sees the same crop: the student through `processor`, a teacher at the size
    and in the colours of its own processor (the student's where it has none)."""

    kind: Literal["image"]
    train: list[str] = Field(min_length=1)
    """Plain .tar files, or patterns, of KEY.jpg (png, webp) and KEY.cls or KEY.json; or a folder of CLASS/NAME.jpg."""
    dev: list[str] = Field(min_length=1)
    """As `train`: what it is scored on."""
    labels: list[str] | None = Field(None, min_length=2)
    """Names of the classes in order; a label is a name or its number from 0. None: as the training files tell: folders,
    or labels in shards, sorted; where labels are numbers, 0 to the largest."""
    label_field: str = "label"
    """Of a KEY.json: the field that holds the label."""
    processor: str | None = None
    """A folder or hub name with preprocessor_config.json; None: DeiT's, for images of `image_size`."""
    image_size: int | None = Field(None, ge=8)
    """Pixels on each side without a `processor`; None: 224."""
    crops: Crops | None = Crops()
    """Of training; null: none."""

    @model_validator(mode="after")
    def _one_says_the_size(self) -> ImageTask:
        if self.processor is not None and self.image_size is not None:
            raise ValueError("image_size: the processor says it; leave out one of both")
        return self

    @property
    def asks(self) -> AnswerKind:
        return "image"

    @property
    def head(self) -> TaskHead:
        return TaskHead("image", len(self._names), self._names, *self._sight)

    def files(self) -> dict[str, list[str]]:
        return {"train": self.train, "dev": self.dev}

    def look(self, part: str) -> None:
        files = tables.find(self.train if part == "train" else self.dev, f"task.{part}")
        names = set(self.labels or ())
        strange = [name for name in image_files.classes_of(files[0]) if names and name not in names]
        if strange and not all(name.isdigit() for name in strange):
            raise UserError(
                f"task.labels: {files[0]} has a class {strange[0]!r} that is not among them",
                f"nor are {len(strange) - 1} more" if len(strange) > 1 else "",
                "list all classes, or leave task.labels out",
            )

    def known_head(self, here: bool) -> TaskHead | None:
        names = self.labels
        if names is None and here and len(self.train) == 1:
            names = image_files.classes_of(Path(self.train[0]).expanduser())
        if not names or (self.processor is not None and not Path(self.processor).exists()):
            return None
        return TaskHead("image", len(names), tuple(names), *self._sight)

    def open(self, part: str) -> ImagePart:
        images = self._train[0] if part == "train" else image_files.read(self.dev, "task.dev", self.label_field)[0]
        classes = images.numbered(self._names)
        if part == "train":
            chosen = some(list(range(len(images))), self.max_train_examples)
            if len(chosen) < len(images):
                images, classes = images.chosen(chosen), classes[chosen]
        crops = self.crops if part == "train" else None
        return ImagePart(ImageRows(images, classes, len(self._names), *self._sight, crops), self._names)

    def primary(self, scores: dict[str, dict[str, float]]) -> float:
        return scores["dev"]["accuracy"]

    @cached_property
    def _train(self) -> tuple[Images, list[str]]:
        return image_files.read(self.train, "task.train", self.label_field)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        images, found = self._train
        names = tuple(found if self.labels is None else self.labels)
        if len(names) < 2:
            raise UserError(
                "task.train: the labels are all the same", f"{', '.join(names)}", "there must be two classes"
            )
        without = [
            names[number] for number in np.flatnonzero(np.bincount(images.numbered(names), minlength=len(names)) == 0)
        ]
        if without:
            raise UserError(
                f"task.train: class {without[0]!r} has no images",
                f"nor have {len(without) - 1} more of the {len(names)} classes" if len(without) > 1 else "",
                "give some, or list in task.labels only those that there are",
            )
        return names

    @cached_property
    def _sight(self) -> tuple[Any, int]:
        """The processor, and how many pixels it leaves on each side."""
        if self.processor is None:
            size = self.image_size or 224
            return default_processor(size), size
        found = load_processor(self.processor)
        if found is None:
            raise UserError(
                f"task.processor: {self.processor} has no image processor",
                "looked for preprocessor_config.json there",
                "give the folder of a vision model, or task.image_size instead",
            )
        return found, view_of(found, f"task.processor {self.processor}").size


class ImagePart:
    """One part of the task; one row an image."""

    def __init__(self, rows: ImageRows, names: Sequence[str]) -> None:
        self.rows, self.names = rows, names

    def score(self, outputs: list[NDArray[np.float32]]) -> tuple[dict[str, float], list[Any]]:
        """accuracy: how often the first answer is right; accuracy_top5, of more than five classes: how often it is
        among the first five."""
        answers, truth = np.stack(outputs), self.rows.classes
        first = answers.argmax(-1)
        scores = {"accuracy": accuracy(truth, first)}
        if len(self.names) > 5:
            best = np.argsort(-answers, axis=-1, kind="stable")[:, :5]
            scores["accuracy_top5"] = float((best == truth[:, None]).any(-1).mean())
        return scores, [self.names[number] for number in first]
