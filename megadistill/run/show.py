"""How a resolved config is shown: as YAML, with the origin of each value beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

DEFAULT = "default"


def annotated(tree: Any, origins: Mapping[str, str]) -> str:
    """`tree` as YAML; a comment beside each value names its origin: a file, the command line or the default.

    Args:
        origins: by dotted key, as `config.load` fills it.
    """
    lines = list(_lines(tree, "", ""))
    width = min(max((len(text) for text, key in lines if key is not None), default=0), 60)
    shown = [text if key is None else f"{text:<{width}}  # {_origin(key, origins)}" for text, key in lines]
    return "\n".join(shown) + "\n"


def _lines(value: Any, key: str, indent: str) -> Iterator[tuple[str, str | None]]:
    """(text, dotted key) of each line; the key is None on lines that only open a section."""
    pairs: Any = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    for index, (name, child) in enumerate(pairs):
        path = ".".join(filter(None, [key, str(index if name is None else name)]))
        opening = f"{indent}-" if name is None else f"{indent}{name}:"
        if not isinstance(child, dict | list) or not child:
            yield f"{opening} {_scalar(child)}", path
        elif name is None:  # the first key of a list item stands beside its dash
            inner = list(_lines(child, path, indent + "  "))
            yield f"{opening} {inner[0][0].lstrip()}", inner[0][1]
            yield from inner[1:]
        else:
            yield opening, None
            yield from _lines(child, path, indent + "  ")


def _scalar(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """That of the key, or of the nearest value above it that was given whole."""
    while key:
        if key in origins:
            return origins[key]
        key = key.rpartition(".")[0]
    return DEFAULT
