"""A preset that extends others, as one text that stands alone: comments and all that is its own as they are written."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import yaml

from megadistill.core.schema import merge

Sections = dict[str, str]
"""The lines of each key of a mapping, with the comments above and beside them."""


def standalone(path: Path, order: Sequence[str]) -> str:
    """What a config file and all that it extends come to; the header is the file's own.

    Args:
        order: of the keys.
    """
    header, sections = _whole(path)
    keys = sorted(sections, key=lambda key: order.index(key) if key in order else len(order))
    return header + "".join(sections[key] for key in keys)


def _whole(path: Path) -> tuple[str, Sections]:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    header = list(takewhile(lambda line: line.startswith("#"), lines))
    sections = _sections("".join(lines[len(header) :]))
    parents = yaml.safe_load(sections.pop("extends", "")) or {"extends": []}
    found: Sections = {}
    for parent in [parents["extends"]] if isinstance(parents["extends"], str) else parents["extends"]:
        found = _laid(found, _whole(path.parent / parent)[1])
    return "".join(header), _laid(found, sections)


def _sections(text: str) -> Sections:
    """Of a mapping in block style; comments above a key are its."""
    node = yaml.compose(text)
    assert isinstance(node, yaml.MappingNode)
    lines = text.splitlines(keepends=True)
    starts = [0, *(key.start_mark.line for key, _ in node.value[1:])]
    for place, start in enumerate(starts):
        while start and lines[start - 1].lstrip().startswith("#"):
            start -= 1
        starts[place] = start
    ends = [*starts[1:], len(lines)]
    return {key.value: "".join(lines[start:end]) for (key, _), start, end in zip(node.value, starts, ends, strict=True)}


def _laid(under: Sections, over: Sections) -> Sections:
    """As `schema.merge` lays one mapping on another; what it takes whole keeps its lines."""
    laid = {**under, **over}
    for key in under.keys() & over.keys():
        below, above = _value(under[key]), _value(over[key])
        value = merge({key: below}, {key: above})[key]
        if value == above:
            continue
        parts = [_opened(text) for text in (under[key], over[key])]
        if all(inner for _, inner in parts):
            inside = _laid(*(_sections(inner) for _, inner in parts))
            laid[key] = parts[1][0] + indent("".join(inside.values()), "  ")
        else:
            flow = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
            laid[key] = f"{key}: {flow}"
    return laid


def _value(section: str) -> Any:
    (value,) = yaml.safe_load(section).values()
    return value


def _opened(section: str) -> tuple[str, str]:
    """The lines of a section down to its key, and those within; none within where it is no mapping in block style."""
    node = yaml.compose(section)
    assert isinstance(node, yaml.MappingNode)
    ((key, value),) = node.value
    if not isinstance(value, yaml.MappingNode) or value.flow_style:
        return section, ""
    lines = section.splitlines(keepends=True)
    place = key.start_mark.line + 1
    return "".join(lines[:place]), dedent("".join(lines[place:]))
