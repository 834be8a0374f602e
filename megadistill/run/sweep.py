"""Which runs a sweep is: one for each combination of values, with a name of its own."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

import yaml

from megadistill.core.errors import UserError


def members(name: str, axes: Sequence[str]) -> list[list[str]]:
    """The overrides of each run, its `name` being one.

    Args:
        name: what all their names begin with.
        axes: `key=value,value,...` each; values are YAML, and a list of lists is written `key=[[1, 2], [3, 4]]`.

    Raises:
        UserError: no such list, a key that comes twice, or two runs that would have one name.
    """
    lists = dict(_axis(axis) for axis in axes)
    if len(lists) < len(axes):
        raise UserError(f"--sweep {' '.join(axes)}: a key comes twice", "", "give all values of a key at once")
    runs = [
        [f"name={'-'.join([name, *map(_label, lists, values)])}", *map(_assignment, lists, values)]
        for values in itertools.product(*lists.values())
    ]
    names = [run[0] for run in runs]
    if len(set(names)) < len(names):
        raise UserError(f"--sweep {' '.join(axes)}: two runs would have one name", ", ".join(names), "")
    return runs


def _axis(text: str) -> tuple[str, list[Any]]:
    key, _, values = text.partition("=")
    try:
        found = yaml.safe_load(values if values.startswith("[") else f"[{values}]")
    except yaml.YAMLError:
        found = None
    if not key or not isinstance(found, list) or not found or None in found:
        raise UserError(f"--sweep {text} is no list of values", "", "write it as in --sweep seed=0,1,2")
    if key == "name":
        raise UserError("--sweep name=...: each run's name comes from its values", "", "sweep over something else")
    return key, found


def _assignment(key: str, value: Any) -> str:
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def _label(key: str, value: Any) -> str:
    """`seed0`, `learning_rate1e-4`: what `name` may consist of."""
    return re.sub(r"[^\w.-]+", "-", f"{key.rpartition('.')[2]}{value}").strip("-")
