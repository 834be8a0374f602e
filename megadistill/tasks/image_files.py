"""Labelled images in files: webdataset shards, or one folder a class; every image with its place."""

from __future__ import annotations

import json
import sys
import tarfile
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megadistill.core.errors import UserError
from megadistill.tasks import tables

ENDINGS = ("jpg", "jpeg", "png", "webp")

_AGAIN = "the file is damaged or cut short: get it again"


@dataclass
class Images:
    """Where images are, in a fixed order, and what they are labelled with; about 150 bytes of memory each."""

    files: list[Path]
    """Shards; or the one folder that has a folder for each class."""
    in_folder: bool
    keys: list[str] = field(default_factory=list)
    """By image: the member of its shard, or CLASS/NAME in the folder."""
    labels: list[str] = field(default_factory=list)
    """By image, as it is written there."""
    places: array[int] = field(default_factory=lambda: array("q"))
    """By image three numbers: of its file, of its first byte there, and of its bytes."""

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, file: int, key: str, label: str, start: int, size: int) -> None:
        self.keys.append(key)
        self.labels.append(sys.intern(label))
        self.places.extend((file, start, size))

    def where(self, number: int) -> str:
        """Names the image to people."""
        file = self.files[self.places[3 * number]]
        return str(file / self.keys[number]) if self.in_folder else f"{file} member {self.keys[number]}"

    def read(self, number: int) -> bytes:
        """The bytes of an image's file.

        Raises:
            UserError: they are not there any more.
        """
        file, start, size = self.places[3 * number : 3 * number + 3]
        path = self.files[file]
        try:
            with open(path / self.keys[number] if self.in_folder else path, "rb") as handle:
                handle.seek(start)
                found = handle.read(size)
        except OSError as error:
            raise UserError(f"cannot read {self.where(number)}", str(error)) from None
        if len(found) < size:
            raise UserError(f"{self.where(number)} is cut short", f"{len(found)} bytes of {size}", _AGAIN)
        return found

    def contents(self) -> list[Any]:
        """What makes the rows that a step is made of: keys, labels and sizes, wherever the files are."""
        return [self.keys, self.labels, self.places[2::3].tolist()]

    def chosen(self, numbers: Iterable[int]) -> Images:
        """Some of them."""
        kept = Images(self.files, self.in_folder)
        for number in numbers:
            file, start, size = self.places[3 * number : 3 * number + 3]
            kept.add(file, self.keys[number], self.labels[number], start, size)
        return kept

    def numbered(self, names: Sequence[str]) -> NDArray[np.int64]:
        """[images] the class of each: the number of its label in `names`, or, where these are no numbers themselves,
        the label as such a number.

        Raises:
            UserError: a label is none; names the image.
        """
        known = {name: number for number, name in enumerate(names)}
        if not any(name.isdigit() for name in names):
            known = {str(number): number for number in range(len(names))} | known
        for number, label in enumerate(self.labels):
            if label not in known:
                shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
                raise UserError(
                    f"{self.where(number)}: {label!r} is no label",
                    f"there are {len(names)}: {shown}",
                    "mend it, or list all classes in task.labels",
                )
        return np.array([known[label] for label in self.labels], dtype=np.int64)


def read(patterns: Sequence[str], field: str, label_field: str) -> tuple[Images, list[str]]:
    """The images that patterns name: .tar shards, or one folder with a folder for each class.

    Args:
        field: of the config, for messages.
        label_field: of a shard's KEY.json.

    Returns:
        the images, and the names of the classes as far as the files tell: a folder's folders, sorted; the labels in
        shards, sorted, or 0 to the largest where they are numbers.

    Raises:
        UserError: nothing is there, or what is there cannot be read; names the file and the member.
    """
    files = tables.find(patterns, field)
    folders = [file for file in files if file.is_dir()]
    if folders and len(files) > 1:
        raise UserError(f"{field}: {folders[0]} is a folder, and there is more", "", "give one folder, or .tar files")
    found, names = _of_folder(folders[0], field) if folders else _of_shards(files, label_field)
    if not len(found):
        raise UserError(
            f"{field}: no image", f"{', '.join(map(str, files[:3]))}", f"images end in {', '.join(ENDINGS)}"
        )
    return found, names


def classes_of(folder: Path) -> list[str]:
    """A folder's folders, sorted; none where it is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _of_folder(folder: Path, field: str) -> tuple[Images, list[str]]:
    classes = classes_of(folder)
    if not classes:
        raise UserError(f"{field}: {folder} has no folders", "each class has one", "lay it out as CLASS/NAME.jpg")
    found = Images([folder], in_folder=True)
    for name in classes:
        files = [f for f in sorted((folder / name).iterdir()) if f.suffix.lower().removeprefix(".") in ENDINGS]
        if not files:
            raise UserError(
                f"{field}: class {name!r} has no images",
                f"{folder / name} holds no file that ends in {', '.join(ENDINGS)}",
                "remove that folder, or fill it",
            )
        for file in files:
            found.add(0, f"{name}/{file.name}", name, 0, file.stat().st_size)
    return found, classes


def _of_shards(files: Sequence[Path], label_field: str) -> tuple[Images, list[str]]:
    found = Images(list(files), in_folder=False)
    for number, file in enumerate(files):
        if file.suffix != ".tar":
            raise UserError(
                f"{file} is no .tar", "images are read at their places in a plain one", "unpack it, or write shards"
            )
        _index(file, number, label_field, found)
    different = set(found.labels)
    if all(label.isdigit() for label in different):
        return found, [str(number) for number in range(max(map(int, different), default=-1) + 1)]
    return found, sorted(different)


def _index(path: Path, file: int, label_field: str, found: Images) -> None:
    """Add the samples of one shard, in its order."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str] = {}
    for tar, entry in _entries(path):
        folder, slash, name = entry.name.rpartition("/")
        stem, _, ending = name.partition(".")
        key, where = folder + slash + stem, f"{path} member {entry.name}"
        if ending.lower() in ENDINGS:
            if key in images:
                raise UserError(f"{where}: a second image of {key}", images[key].name, "give each its own key")
            images[key] = entry
        elif ending in ("cls", "json") and (handle := tar.extractfile(entry)) is not None:
            label = _label(handle.read(), ending, label_field, where)
            if labels.setdefault(key, label) != label:
                raise UserError(f"{where}: a second label of {key}", f"{labels[key]!r} and {label!r}", "keep one")
    for key, entry in images.items():
        if key not in labels:
            raise UserError(
                f"{path} member {entry.name} has no label",
                f"there is no {key}.cls and no {key}.json",
                "write one beside every image",
            )
        found.add(file, entry.name, labels[key], entry.offset_data, entry.size)


def _label(data: bytes, ending: str, label_field: str, where: str) -> str:
    try:
        text = data.decode("utf-8").strip()
        if ending == "cls":
            return text
        value = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{where} is no label", str(error), "write text in UTF-8, or JSON") from None
    if not isinstance(value, dict) or isinstance(value.get(label_field), bool | float | list | dict | None):
        shown = f"it has {', '.join(value)}" if isinstance(value, dict) else f"found {text[:40]!r}"
        raise UserError(f"{where} has no label in field {label_field!r}", shown, "set task.label_field")
    return str(value[label_field])


def _entries(path: Path) -> Iterable[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The files in a tar. `tarfile` takes a damaged header for the end of the archive; here only the block of zeros
    that closes every archive is taken for its end."""
    try:
        with open(path, "rb") as raw:
            with tarfile.open(fileobj=raw, mode="r:") as tar:
                for entry in tar:
                    if entry.isfile():
                        yield tar, entry
                end = tar.offset
            raw.seek(end)
            last = raw.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{path} cannot be read as a tar", str(error), _AGAIN) from None
    if len(last) < tarfile.BLOCKSIZE or any(last):
        raise UserError(f"{path} is damaged", f"what stands at byte {end:,} is neither a member nor the end", _AGAIN)
