"""How any transformers image classifier answers a batch of images, and what each of them sees of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megadistill.core.errors import UserError
from megadistill.core.types import Batch, Dims, Head, HeadFunction, HeadName, Signals
from megadistill.models.heads import output_layers
from megadistill.models.signals import LanguageModel, Result

PROCESSOR = "preprocessor_config.json"
"""In a model's folder: what its images go through."""

RESIZE_FOR_CROP = 0.875
"""What the centre crop keeps of the resized image's shorter side: 224 of 256 (Touvron et al. 2021, their code)."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels between 0 and 1, which most models are trained with."""


@dataclass(frozen=True)
class View:
    """What a model sees of an image."""

    size: int
    """Pixels on each side."""
    matrix: tuple[tuple[float, ...], ...]
    """[3][3] channel c of the input is `sum_k matrix[c][k] * byte k + offset[c]`: scaling and normalisation, and for
    some models another order of the colours."""
    offset: tuple[float, ...]

    def __str__(self) -> str:
        black = ", ".join(f"{value:.3f}" for value in self.offset)
        white = ", ".join(f"{255 * sum(row) + b:.3f}" for row, b in zip(self.matrix, self.offset, strict=True))
        return f"{self.size} x {self.size} pixels from ({black}) for black to ({white}) for white"

    def __call__(self, pixels: Tensor) -> Tensor:
        """[B, 3, S, S] uint8 -> [B, 3, size, size] float32; images of another size are resized (bicubic)."""
        values = pixels.float()
        if values.shape[-1] != self.size:
            size = (self.size, self.size)
            values = nn.functional.interpolate(values, size, mode="bicubic", antialias=True).clamp(0, 255)
        channels = values.unbind(1)
        mixed = [
            sum((factor * channels[k] for k, factor in enumerate(row) if factor), torch.full_like(channels[0], plus))
            for row, plus in zip(self.matrix, self.offset, strict=True)
        ]
        return torch.stack(mixed, 1)


def view_of(processor: Any, where: str) -> View:
    """What a processor does, found out by trying it on images of one colour.

    Raises:
        UserError: it makes no square images of three channels; `where` says whose it is.
    """
    from PIL import Image

    def seen(colour: tuple[int, int, int], shape: tuple[int, int] = (320, 240)) -> NDArray[Any]:
        return np.asarray(processor(Image.new("RGB", shape, colour), return_tensors="np")["pixel_values"])

    try:
        wide, high = seen((0, 0, 0)), seen((0, 0, 0), (240, 320))
    except Exception as error:  # each processor checks its fields in its own way
        raise UserError(f"{where}: the image processor cannot be used", str(error), "mend its file") from error
    if wide.shape != high.shape or wide.ndim != 4 or wide.shape[1] != 3 or wide.shape[2] != wide.shape[3]:
        raise UserError(
            f"{where}: the image processor makes no square images of three channels",
            f"of 320 x 240 pixels it makes {list(wide.shape[1:])}, of 240 x 320 {list(high.shape[1:])}",
            "give one that crops, such as DeiT's",
        )
    middle = wide.shape[-1] // 2
    offset = wide[0, :, middle, middle].astype(float)
    columns = [
        (seen(colour)[0, :, middle, middle].astype(float) - offset) / 255
        for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    ]
    rows = tuple(tuple(float(column[channel]) for column in columns) for channel in range(3))
    return View(int(wide.shape[-1]), rows, tuple(float(value) for value in offset))


def default_processor(size: int) -> Any:
    """DeiT's: the shorter side resized (bicubic), the centre cropped to `size` pixels, ImageNet's normalisation."""
    from transformers import DeiTImageProcessorPil

    return DeiTImageProcessorPil(
        size={"shortest_edge": round(size / RESIZE_FOR_CROP)},
        crop_size={"height": size, "width": size},
        image_mean=list(MEAN),
        image_std=list(STD),
    )


def load_processor(path: str, revision: str | None = None) -> Any:
    """The PIL image processor of a local folder or hub name; None where there is none.

    Raises:
        UserError: there is one, and it cannot be read.
    """
    from transformers import AutoImageProcessor

    local = Path(path)
    if local.is_dir() and not (local / PROCESSOR).exists():
        return None
    try:
        return AutoImageProcessor.from_pretrained(path, revision=revision, backend="pil")
    except Exception as error:
        if not local.is_dir():  # the hub has none of this name, or there is no network
            return None
        raise UserError(f"cannot read {local / PROCESSOR}", str(error).strip().split("\n")[0], "mend it") from error


def with_distillation_token(config: Any) -> Any:
    """The same transformers config, for the class with a distillation token where the architecture has one (DeiT)."""
    from transformers import AutoModelForImageClassification

    known = AutoModelForImageClassification._model_mapping.get(type(config), None)
    for one in known if isinstance(known, tuple) else ():
        if one.__name__.endswith("WithTeacher"):
            config.architectures = [one.__name__]
    return config


class ImageModel(LanguageModel):
    """A transformers image classifier as a signal source; with a distillation token it answers from two heads, and as
    a whole by the mean of their logits, as transformers' own."""

    def __init__(self, hf: Any, processor: Any = None) -> None:
        """Args:
        processor: None: not known (see `sees`).
        """
        super().__init__(hf)
        self.processor: Any = None
        self.view: View | None = None
        if processor is not None:
            self.sees(processor)

    def sees(self, processor: Any) -> None:
        """From here on images come to it as through this processor."""
        self.processor, self.view = processor, view_of(processor, type(self.hf).__name__)

    @property
    def num_tokens(self) -> int:
        return 0

    @property
    def dims(self) -> Dims:
        layer, config = output_layers(self.hf)[0], self.hf.config
        depth, heads = (getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads"))
        return Dims(
            depth if isinstance(depth, int) else 0,
            layer.in_features,
            layer.out_features,
            heads if isinstance(heads, int) else 1,
            full_attention=False,
        )

    def signals(
        self,
        batch: Batch,
        hidden: frozenset[int],
        attention: frozenset[int] = frozenset(),
        replaced: Mapping[int, Tensor] | None = None,
        where: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Signals:
        """Run the model on a batch of images and keep what its output layers read.

        Args:
            hidden: only -1, which is that.
            attention: none; nor can states be exchanged.
        """
        assert batch.pixels is not None
        assert hidden <= {-1}, "an image model shows no states of its layers"
        assert not attention
        assert not replaced
        states, _ = self._read(batch.pixels)
        length = batch.mask.shape[1]
        heads = [_head(layer, read, length) for layer, read in zip(output_layers(self.hf), states, strict=True)]
        kept = {-1: torch.cat(states, -1).unsqueeze(1)} if hidden else {}
        if len(heads) == 1:
            return Signals(heads[0], kept)
        names: tuple[HeadName, HeadName] = ("class", "distillation")
        return Signals(_mean(*heads), kept, heads=dict(zip(names, heads, strict=True)))

    def _read(self, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
        """What each output layer is given [B, H], and the model's own logits [B, V]."""
        assert self.view is not None, "no processor"
        given: dict[int, Tensor] = {}
        layers = output_layers(self.hf)

        def keep(number: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda _, inputs: given.update({number: inputs[0]})

        hooks = [layer.register_forward_pre_hook(keep(number)) for number, layer in enumerate(layers)]
        try:
            dtype = next(self.hf.parameters()).dtype
            answer = self.hf(pixel_values=self.view(pixels).to(dtype), return_dict=True)
        finally:
            for hook in hooks:
                hook.remove()
        return [given[number] for number in range(len(layers))], answer.logits

    def try_empty(self, attention: frozenset[int]) -> bool | None:
        """Without weights, on torch's meta device: whether it takes images of its processor's size.

        Raises:
            UserError: it does not.
        """
        try:
            if self.view is not None:
                self._try()
        except UserError as error:
            if "meta" not in error.why:  # else it looks at numbers, and there are none
                raise
        return None

    @torch.no_grad()
    def _try(self) -> tuple[list[Tensor], Tensor]:
        """Of an image of noise what each output layer is given [1, H], and the model's own logits [1, V]."""
        assert self.view is not None
        name, size = type(self.hf).__name__, self.view.size
        noise = torch.randint(256, (1, 3, size, size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        training = self.training
        self.eval()
        try:
            return self._read(noise.to(next(self.hf.parameters()).device))
        except (ValueError, RuntimeError, KeyError) as error:
            raise UserError(
                f"{name} cannot read images of {size} x {size} pixels",
                str(error).strip().split("\n")[0],
                "give task.image_size, or task.processor, as the model has it in its config.json",
            ) from error
        finally:
            self.train(training)

    @torch.no_grad()
    def check_head(self, length: int = 8) -> None:
        """Try out, on an image of noise, that the model takes images of its processor's size, and that its heads give
        the logits that the whole model gives.

        Raises:
            UserError: one of it is not so.
        """
        name = type(self.hf).__name__
        states, theirs = self._try()
        logits = [layer(read) for layer, read in zip(output_layers(self.hf), states, strict=True)]
        ours = torch.stack(logits).mean(0)
        if not torch.allclose(ours.float(), theirs.float(), rtol=1e-2, atol=1e-2 * float(theirs.abs().max())):
            raise UserError(
                f"{name} computes its logits in a way that megadistill does not know",
                "its own logits differ from those of its output layers",
                "use deit, vit, regnet, convnext or one like them",
            )


def _head(layer: nn.Module, states: Tensor, length: int) -> Head:
    """An output layer over what it read of each image [B, H], asked at flat positions of [B * length]."""

    def head(fn: HeadFunction[Result], rows: Tensor, layers: Sequence[int] = (-1,)) -> Result:
        result: Result = layer(states[rows // length], fn)
        return result

    return head


def _mean(first: Head, second: Head) -> Head:
    """Both heads as one whose logits are their mean; each weight is readable inside its own layer only (ZeRO 3)."""

    def head(fn: HeadFunction[Result], rows: Tensor, layers: Sequence[int] = (-1,)) -> Result:
        def both(h0: Tensor, w0: Tensor, b0: Tensor | None) -> Result:
            def joined(h1: Tensor, w1: Tensor, b1: Tensor | None) -> Result:
                bias = None if b0 is None or b1 is None else (b0 + b1) / 2
                return fn(torch.cat([h0, h1], -1), torch.cat([w0, w1], -1) / 2, bias)

            return second(joined, rows)

        return first(both, rows)

    return head


def refuse_misfits(student: ImageModel, teachers: Sequence[ImageModel], names: Sequence[str]) -> None:
    """What only images can get wrong.

    Args:
        names: of the task's classes.

    Raises:
        UserError: the student's gradient would depend on how a batch is split, or a teacher's classes are the task's
            in another order.
    """
    whole = [name for name, part in student.hf.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if whole:
        raise UserError(
            f"the student ({type(student.hf).__name__}) normalises over a micro-batch",
            f"{whole[0]} and {len(whole) - 1} more are BatchNorm, whose gradient depends on ranks and micro_batch size",
            "train deit, vit, swin, convnext or another without; a teacher may have it",
        )
    for teacher in teachers:
        theirs = [teacher.hf.config.id2label.get(number) for number in range(len(names))]
        if set(theirs) == set(names) and theirs != list(names):
            number = next(n for n, name in enumerate(names) if theirs[n] != name)
            raise UserError(
                f"the teacher ({type(teacher.hf).__name__}) has the task's classes in another order",
                f"class {number} is {theirs[number]!r} to it, and {names[number]!r} in the task",
                "list task.labels in the teacher's order (id2label in its config.json)",
            )
