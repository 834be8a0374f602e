"""Images as the rows of a stream: decoded, cropped and mirrored as (seed, epoch, row) say, whichever rank asks."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from megadistill.core.errors import UserError
from megadistill.core.files import sha256_json
from megadistill.core.schema import Strict
from megadistill.core.types import Batch
from megadistill.data.hashing import row_keys, uniform
from megadistill.data.order import ORDER_VERSION, Order, Places
from megadistill.tasks.image_files import Images

I64 = NDArray[np.int64]
Box = tuple[int, int, int, int]
"""Left, upper, right, lower."""

ATTEMPTS = 10
"""To draw a crop that lies in the image (Szegedy et al. 2015; torchvision's number)."""

PATCH = 16
"""Pixels of a side of what a transformer usually takes for one position."""


class Crops(Strict):
    """What training does to an image before the model sees it (Szegedy et al. 2015, section 6)."""

    area: tuple[float, float] = (0.08, 1.0)
    """Least and largest share of the image that a crop takes."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Narrowest and widest crop, width over height; it is then resized to a square."""
    mirror: float = Field(0.5, ge=0, le=1)
    """How often left and right change places."""

    @model_validator(mode="after")
    def _ranges_are_some(self) -> Crops:
        if not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area: {list(self.area)} must rise, within 0 and 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio: {list(self.ratio)} must rise from above 0")
        return self


class ImageRows:
    """Images by number; see `data.rows.Rows` for what each member says. A row is one position."""

    staging = None
    sequence_length = 1
    choices = 1

    def __init__(self, images: Images, classes: I64, outputs: int, processor: Any, size: int, crops: Crops | None):
        """Args:
        classes: [images] the class of each, of so many `outputs`.
        processor: makes the pixels of an image that is shown as a whole, `size` on each side.
        crops: None: images are always shown as a whole.
        """
        self.images, self.classes, self.processor, self.size = images, classes, processor, size
        self.crops = crops
        self.counts = np.bincount(classes, minlength=outputs)

    @property
    def sizes(self) -> list[int]:
        return [len(self.images)]

    @property
    def lengths(self) -> I64:
        return np.full(len(self.images), max(1, self.size // PATCH) ** 2, dtype=np.int64)

    def order(self, seed: int, skips: Sequence[tuple[int, int]]) -> Order:
        return Order(self.sizes, None, seed, skips)

    def fingerprint(self, seed: int) -> str:
        how = None if self.crops is None else self.crops.model_dump()
        return sha256_json(
            ["images", self.images.contents(), self.classes.tolist(), _plain(self.processor), how, ORDER_VERSION, seed]
        )

    def batch(self, places: Places, seed: int, purpose: str) -> Batch:
        """The rows at `places`, cropped and mirrored anew in every epoch."""
        if self.crops is None:
            return self.take(places.row)
        keys = row_keys(seed, purpose, "images", places.epoch, places.row)
        return self._made(places.row, uniform(keys, 0, 4 * ATTEMPTS + 1))

    def micro_batches(self, places: Places, size: int, seed: int, purpose: str) -> list[Batch]:
        return self.batch(places, seed, purpose).split(size)

    def take(self, rows: I64) -> Batch:
        """The rows of these numbers, as whole images."""
        return self._made(rows, None)

    def fetch(self, places: Places) -> None:
        """Images are read where they are."""

    def _made(self, rows: I64, draws: NDArray[np.float64] | None) -> Batch:
        jobs = [(int(row), None if draws is None else draws[index]) for index, row in enumerate(rows)]
        pixels = np.stack(list(self._threads.map(lambda job: self._pixels(*job), jobs)))
        ones = torch.ones(len(rows), 1, dtype=torch.int64)
        return Batch(
            ids=torch.zeros_like(ones),
            mask=ones.bool(),
            segments=ones,
            labels=torch.from_numpy(self.classes[rows]).unsqueeze(1),
            rows=torch.from_numpy(rows.astype(np.int64)),
            pixels=torch.from_numpy(pixels),
        )

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        """Pillow lets other threads run while it decodes and resizes."""
        return ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0))), thread_name_prefix="images")

    def _pixels(self, row: int, draws: NDArray[np.float64] | None) -> NDArray[np.uint8]:
        """[3, size, size] of one image."""
        from PIL import Image

        data = self.images.read(row)
        try:
            with Image.open(io.BytesIO(data)) as opened:
                image = opened.convert("RGB")
        except Exception as error:  # Pillow's formats raise what they like: OSError, SyntaxError, struct.error, ...
            raise UserError(
                f"{self.images.where(row)} cannot be read as an image",
                str(error).split(" <")[0],  # not the address of the bytes in memory
                "get it again, of the same size if a run shall go on; or remove it, and start over with --fresh",
            ) from None
        if draws is None:
            whole = self.processor(image, return_tensors="np", do_rescale=False, do_normalize=False)["pixel_values"]
            shown: NDArray[np.uint8] = whole[0]
        else:
            assert self.crops is not None
            image = image.crop(crop(draws, image.width, image.height, self.crops))
            image = image.resize((self.size, self.size), self.processor.resample)
            if draws[-1] < self.crops.mirror:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            shown = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
        return shown


def crop(draws: NDArray[np.float64], width: int, height: int, crops: Crops) -> Box:
    """Which part of an image training sees: of the first attempt that fits in, a share of the area and a ratio of the
    sides, uniform and log-uniform; else the largest part in the middle of an allowed ratio.

    Args:
        draws: at least [4 * ATTEMPTS] uniform in [0, 1): of each attempt area, ratio, left and upper edge.
    """
    narrow, wide = crops.ratio
    for attempt in range(ATTEMPTS):
        area, ratio, left, upper = draws[4 * attempt : 4 * attempt + 4]
        pixels = width * height * (crops.area[0] + area * (crops.area[1] - crops.area[0]))
        aspect = narrow * (wide / narrow) ** ratio
        w, h = round(math.sqrt(pixels * aspect)), round(math.sqrt(pixels / aspect))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(left * (width - w + 1)), int(upper * (height - h + 1))
            return x, y, x + w, y + h
    w, h = min(width, round(height * wide)), min(height, round(width / narrow))
    x, y = (width - w) // 2, (height - h) // 2
    return x, y, x + w, y + h


def _plain(processor: Any) -> dict[str, Any]:
    found: dict[str, Any] = processor.to_dict()
    return found
