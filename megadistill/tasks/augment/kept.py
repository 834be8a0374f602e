"""Variants are made once: where they are kept, part by part, and how they become examples.

A part is a thousand different examples in an order of their own, and appears whole or not at all: any number of
processes may make parts side by side, and whoever is killed goes on behind the last one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from megadistill.core import log
from megadistill.core.dist import best_device
from megadistill.core.errors import UserError
from megadistill.core.files import atomic_write, sha256_json, write_json
from megadistill.tasks.augment.base import Augment, Made, Pair
from megadistill.tasks.encoding import Example

VERSION = 1
"""Of what the methods do: raised when the same settings give other variants."""

PART = 1024
"""Examples of a part. What a model answers may depend on the batch in its last bits, so parts are cut in one way."""

STATS, FROM = "stats.json", "made_from.json"


def make(
    config: Augment, examples: Sequence[Example], share: tuple[int, int] = (0, 1), device: torch.device | None = None
) -> Path:
    """Make what is missing of the examples' variants.

    Args:
        share: (i, n): only every n-th part, from the i-th on.
        device: of models that take part; None: the best one here.

    Returns:
        the folder; `STATS` is in it once all parts are.

    Raises:
        UserError: something that the method reads is missing or wrong.
    """
    pairs = _pairs(examples)
    folder = _folder(config, pairs)
    parts = _parts(folder, pairs)
    mine = [part for part in parts[share[0] :: share[1]] if not part[0].exists()]
    if mine:
        maker = config.maker(pairs, device or best_device())
        if not (folder / FROM).exists():
            write_json(folder / FROM, {"version": VERSION, "examples": len(pairs), **config.identity()})
    for done, (file, some) in enumerate(mine, 1):
        with atomic_write(file) as handle:
            handle.writelines(_line(made) for made in maker(some))
        log.get().info(f"{file}: {done} of {len(mine)} parts")
    if not (folder / STATS).exists() and all(file.exists() for file, _ in parts):
        write_json(folder / STATS, _stats(parts))
    return folder


def are_made(config: Augment, examples: Sequence[Example]) -> bool:
    """Whether `variants` has nothing left to make of them."""
    return (_folder(config, _pairs(examples)) / STATS).exists()


def variants(config: Augment, examples: Sequence[Example]) -> list[Example]:
    """The variants of all examples; each stands at its example's place, and has its answer or none (NaN)."""
    folder = make(config, examples)
    found: dict[Pair, list[Pair]] = {}
    for file, pairs in _parts(folder, _pairs(examples)):
        found |= dict(zip(pairs, (made.variants for made in _read(file, len(pairs))), strict=True))
    result = []
    for example in examples:
        answer = example.answer if config.answers == "original" else float("nan")
        for first, second in found.pop((example.first, example.second), []):
            result.append(Example(example.where, first, second, answer, made=True))
    return result


def _pairs(examples: Sequence[Example]) -> list[Pair]:
    """Each once, in an order that their file's does not change."""
    return sorted({(one.first, one.second) for one in examples}, key=lambda pair: (pair[0], pair[1] or ""))


def _folder(config: Augment, pairs: Sequence[Pair]) -> Path:
    key = sha256_json([VERSION, PART, config.identity(), sha256_json(pairs)])
    return config.cache / f"{config.kind}-{key[:16]}"


def _parts(folder: Path, pairs: Sequence[Pair]) -> list[tuple[Path, Sequence[Pair]]]:
    starts = range(0, len(pairs), PART)
    return [(folder / f"part-{start // PART:05d}.jsonl", pairs[start : start + PART]) for start in starts]


def _line(made: Made) -> str:
    return json.dumps({"variants": made.variants, "counts": made.counts}, ensure_ascii=False) + "\n"


def _read(file: Path, number: int) -> Iterator[Made]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        if len(lines) != number:
            raise ValueError(f"{len(lines)} lines, and there are {number} examples")
        for line in map(json.loads, lines):
            yield Made([(first, second) for first, second in line["variants"]], Counter(line["counts"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not as it was written", str(error), "remove it; it is made again") from None


def _stats(parts: Sequence[tuple[Path, Sequence[Pair]]]) -> dict[str, Any]:
    """What was produced, and some of it to look at."""
    total: Counter[str] = Counter()
    produced, examples = 0, 0
    shown: list[dict[str, Any]] = []
    for file, pairs in parts:
        for made in _read(file, len(pairs)):
            total += made.counts
            produced, examples = produced + len(made.variants), examples + 1
        if len(shown) < 8:
            of_part = zip(pairs, _read(file, len(pairs)), strict=True)
            shown += [{"of": pair, "variants": made.variants[:3]} for pair, made in islice(of_part, 8 - len(shown))]
    words = max(total["words"], 1)
    shares = {f"{name}_share": total[name] / words for name in ("replaced", "masked") if name in total}
    return {"examples": examples, "produced": produced, **dict(sorted(total.items())), **shares, "samples": shown}
