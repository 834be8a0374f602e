"""The rows of examples and their variants: encoded once, then read where they lie, by all processes of a machine
together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from megadistill.core import log
from megadistill.core.errors import UserError
from megadistill.core.files import atomic_write, sha256_json
from megadistill.data.tokenization import Tokenizer
from megadistill.models.heads import TaskHead
from megadistill.tasks.augment.base import Augment
from megadistill.tasks.augment.kept import make, variants
from megadistill.tasks.encoding import Encoded, Example, encode

VERSION = 1
"""Of how examples become rows: raised when the same examples give other ones."""

_ARRAYS = ("tokens", "segments", "starts", "answers", "counts")


def augmented(
    config: Augment, examples: Sequence[Example], head: TaskHead, tokenizer: Tokenizer, length: int
) -> Encoded:
    """The examples, and behind all of them their variants. Their rows are kept beside the variants in a file that is
    mapped into memory, so that eight processes hold them once; where it cannot be written, each has its own.

    Raises:
        UserError: as `make`, or the file is damaged.
    """
    folder = make(config, examples)
    known = [[one.first, one.second, one.answer] for one in examples]
    key = [VERSION, known, config.answers, head.kind, head.outputs, tokenizer.fingerprint, length]
    file = folder / f"rows-{sha256_json(key)[:16]}.safetensors"
    if not file.exists():
        every = [*examples, *variants(config, examples)]
        encoded = encode(every, head.kind, head.outputs, tokenizer, length)
        try:
            _write(file, encoded)
        except OSError as error:
            log.get().warning(f"the rows of the variants are not kept and will be encoded at each start: {error}")
            return encoded
    return _read(file, head)


def _write(file: Path, encoded: Encoded) -> None:
    arrays = {name: getattr(encoded, name) for name in _ARRAYS}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items() if array is not None}
    numbers = {"padding": encoded.padding, "truncated": encoded.truncated}
    with atomic_write(file, "wb") as handle:
        handle.write(save(tensors, {"numbers": json.dumps(numbers)}))  # several entries would be in any order


def _read(file: Path, head: TaskHead) -> Encoded:
    try:
        with safe_open(file, "pt") as opened:
            numbers = json.loads(opened.metadata()["numbers"])
            arrays = {name: opened.get_tensor(name).numpy() for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} is not as it was written", str(error), "remove it; it is made again") from None
    return Encoded(head.kind, **arrays, **numbers)
