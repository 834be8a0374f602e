"""Small sets of images in the published layouts: discs and squares of six colours on a noisy ground."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLOURS = {
    "blue": (40, 60, 230),
    "cyan": (40, 210, 220),
    "green": (40, 200, 60),
    "pink": (230, 60, 210),
    "red": (230, 50, 40),
    "yellow": (230, 220, 50),
}
NAMES = tuple(COLOURS)
"""Of the classes, sorted."""


def pictures(count: int, seed: int) -> Iterator[tuple[int, Image.Image]]:
    """(class, image of about 40 x 48 pixels), the classes in turn."""
    draw = np.random.default_rng(seed)
    for number in range(count):
        width, height = (int(side) for side in draw.integers(36, 52, 2))
        image = Image.fromarray(draw.integers(90, 150, (height, width, 3), dtype=np.uint8))
        side = int(draw.integers(18, 26))
        x, y = int(draw.integers(0, width - side)), int(draw.integers(0, height - side))
        paint = ImageDraw.Draw(image)
        shape = paint.ellipse if draw.random() < 0.5 else paint.rectangle
        shape((x, y, x + side, y + side), fill=COLOURS[NAMES[number % len(NAMES)]])
        yield number % len(NAMES), image


def folder(root: Path, count: int, seed: int) -> Path:
    """One folder a class."""
    for number, (label, image) in enumerate(pictures(count, seed)):
        path = root / NAMES[label] / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return root


def shards(root: Path, count: int, seed: int, each: int = 48) -> str:
    """Webdataset shards; labels are numbers in .cls and names in .json by turns, images png, jpg and webp.

    Returns:
        the pattern that names them.
    """
    root.mkdir(parents=True, exist_ok=True)
    made = list(pictures(count, seed))
    for start in range(0, count, each):
        members: dict[str, bytes] = {}
        for number, (label, image) in enumerate(made[start : start + each], start):
            ending = ("png", "jpg", "webp")[number % 3]
            buffer = io.BytesIO()
            image.save(buffer, {"jpg": "jpeg"}.get(ending, ending))
            members[f"{number:04d}.{ending}"] = buffer.getvalue()
            told = {"label": NAMES[label], "caption": "a picture"}
            name, said = ("cls", str(label)) if number % 2 else ("json", json.dumps(told))
            members[f"{number:04d}.{name}"] = said.encode()
        tar(root / f"{start // each:06d}.tar", members)
    return str(root / "*.tar")


def tar(path: Path, members: dict[str, bytes]) -> Path:
    """A plain tar of such files."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path
