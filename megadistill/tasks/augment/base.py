"""What augmentation is: a config that makes variants of texts, which a teacher then answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import torch

from megadistill.core.errors import UserError
from megadistill.core.files import sha256_file, sha256_json
from megadistill.core.schema import Strict, Tree
from megadistill.core.seeds import derive

Pair = tuple[str, str | None]
"""The text, or texts, of an example."""


@dataclass(frozen=True)
class Made:
    """The variants of one example: all different from it and from one another."""

    variants: list[Pair]
    counts: Counter[str] = field(default_factory=Counter)
    """How often what was done: `draws` of a variant, `duplicates` dropped, `words` that could have been changed, and
    what a method counts besides."""


class Maker(Protocol):
    """Makes the variants of some examples; they depend on these examples alone, not on what was made before."""

    def __call__(self, pairs: Sequence[Pair]) -> list[Made]: ...


class Augment(Strict):
    """Base of every method's config. Variants are made once for all runs of equal data and settings, whatever the order
    of the examples and the number of processes, and kept in `cache`; equal examples share theirs."""

    kind: str
    seed: int = 0
    """Of all that is random here. The run's own seed changes nothing, so runs with several seeds share their rows."""
    answers: Literal["teacher", "original"] = "teacher"
    """Who answers a variant. teacher: only the teacher, and objectives on labels pass over it. original: its example's
    own answer is its too (TinyBERT's code on STS-B)."""
    cache: Path = Path("prepared/augmented")
    """Variants are kept in folders in here, named by what they were made from."""

    def sources(self) -> dict[str, Path | str]:
        """Field -> what is read besides the examples: a file or folder or, as plain text, perhaps a hub name."""
        return {}

    def check(self) -> None:
        """Raises:
        UserError: what is wrong whatever the data are: a package is not installed, files that are here are no such.
        """

    def maker(self, pairs: Sequence[Pair], device: torch.device) -> Maker:
        """Load what is needed.

        Args:
            pairs: all examples, for statistics over them; not in the order of the file.

        Raises:
            UserError: something is missing or unreadable.
        """
        raise NotImplementedError

    def identity(self) -> Tree:
        """All that variants depend on but the examples: settings, and the content of files.

        Raises:
            UserError: one is missing.
        """
        sources = self.sources()
        settings = self.model_dump(mode="json", exclude={"answers", "cache", *sources})
        return {**settings, **{name: _content(name, path) for name, path in sources.items()}}


def random_of(config: Augment, pair: Pair) -> int:
    """The seed of one example's variants."""
    first, second = pair
    return derive(config.seed, "augment", first, "" if second is None else f"+{second}")


def collect(pair: Pair, drawn: Sequence[Pair], counts: Counter[str]) -> Made:
    """The draws that are new, in their order; adds `draws` and `duplicates` to what was counted."""
    variants = [one for one in dict.fromkeys(drawn) if one != pair]
    return Made(variants, counts + Counter(draws=len(drawn), duplicates=len(drawn) - len(variants)))


def _content(name: str, path: Path | str) -> str:
    """A hash of a file, or of the files of a folder; the name of what is on the hub."""
    here = Path(path).expanduser()
    if here.is_file():
        return sha256_file(here)
    if here.is_dir():
        return sha256_json([[file.name, sha256_file(file)] for file in sorted(here.iterdir()) if file.is_file()])
    if isinstance(path, Path) or here.is_absolute() or path.startswith(".") or path.count("/") > 1:
        raise UserError(f"task.augment.{name}: no {path}", "no such file or folder", "check the path")
    return path
