"""In which fields does a run's config differ: from the preset it was made from, and from other runs' configs?"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megadistill.core.errors import UserError
from megadistill.core.schema import Tree, merge, read_yaml
from megadistill.report.collect import RunFacts
from megadistill.run import presets

ABSENT = "–"


@dataclass(frozen=True)
class Change:
    """A field, or a list or section that was replaced whole, and both its values in short."""

    key: str
    before: str
    now: str
    overridden: bool = False
    """Set on the command line."""


@dataclass(frozen=True)
class Origin:
    """Where a run's config comes from."""

    file: str
    """As the command named it; empty where that was not kept."""
    overrides: list[str]
    """`key=value` of the command line."""
    base: str = ""
    """What it is compared with; empty where nothing was found."""
    changes: tuple[Change, ...] = ()


def origin(run: RunFacts) -> Origin:
    """The file and the overrides of the command that started the run last; and in what its config differs from the
    preset, as this version has it: the file itself where it is one, what it extends, what `init` copied it from.
    Another file is compared with itself as it is now, if it is there."""
    file, overrides = _command(run.command)
    found = _base(file) if file else None
    if found is None:
        return Origin(file, overrides)
    base, tree = found
    before, now = _resolved(tree), _resolved(run.config)
    if before is None or now is None:  # parts of a config, or fields that this version has no more
        before, now = tree, run.given or run.config
    keys = [text.partition("=")[0] for text in overrides]
    found_changes = [
        Change(one.key, one.before, one.now, any(_within(one.key, key) or _within(key, one.key) for key in keys))
        for one in changes(before, now, (tree, run.given or run.config))
    ]
    return Origin(file, overrides, base, tuple(found_changes))


def changes(before: Tree, now: Tree, given: tuple[Tree, Tree] | None = None) -> list[Change]:
    """From one resolved config to another. Lists of another length, and sections of another kind, are told whole.

    Args:
        given: the same configs without their defaults, to tell such parts shortly.
    """
    short = given or (before, now)
    different = _walk(before, now, "")
    return [Change(key, _short(_at(short[0], key, a)), _short(_at(short[1], key, b))) for key, a, b in different]


def among(runs: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """(field, one value a run) of everything that the first run's config has otherwise than another's."""
    first = runs[0].config
    others = [{one.key for one in changes(first, run.config)} for run in runs[1:]]
    keys = sorted({key for found in others for key in found} - {"name", "directory"})
    keys = [key for key in keys if not any(_within(key, other) and key != other for other in keys)]
    return [(key, [_short(_at(run.given, key, _at(run.config, key, None))) for run in runs]) for key in keys]


def _walk(before: Any, now: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if before == now:
        return
    if isinstance(before, dict) and isinstance(now, dict) and before.get("kind") == now.get("kind"):
        pairs = [(name, before.get(name), now.get(name)) for name in {**before, **now}]
    elif _alike(before, now):
        pairs = [(str(place), a, b) for place, (a, b) in enumerate(zip(before, now, strict=True))]
    else:
        yield key, before, now
        return
    for name, a, b in pairs:
        yield from _walk(a, b, f"{key}.{name}" if key else name)


def _alike(before: Any, now: Any) -> bool:
    """Lists of as many sections of the same kinds."""
    if not isinstance(before, list) or not isinstance(now, list):
        return False
    kinds = [[one.get("kind") if isinstance(one, dict) else one for one in items] for items in (before, now)]
    return kinds[0] == kinds[1]


def _command(text: str) -> tuple[str, list[str]]:
    """FILE and KEY=VALUE of a `train` command."""
    try:
        words = shlex.split(text)
    except ValueError:  # a quote is left open
        return "", []
    behind = words[words.index("train") + 1 :] if "train" in words else []
    plain = [word for word in behind if not word.startswith("-")]
    return (plain[0], plain[1:]) if plain else ("", [])


def _base(file: str) -> tuple[str, Tree] | None:
    folder = presets.folder().resolve()
    known = {preset.path.resolve(): preset.name for preset in presets.presets()}
    shipped = folder / file.rpartition("configs/")[2]
    try:
        path = presets.resolve(Path(file))
        if path.resolve() not in known and not path.exists() and shipped.resolve() in known:
            path = shipped  # the report is made in another folder than the run
        if path.resolve() in known:
            return f"preset {known[path.resolve()]}", read_yaml(path)
        if not path.exists():
            return None
        whole = read_yaml(path)
        parents = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("extends", [])
        if parents:
            above = [(path.parent / name).resolve() for name in ([parents] if isinstance(parents, str) else parents)]
            names = [f"preset {known[parent]}" if parent in known else str(parent) for parent in above]
            return ", ".join(names), _merged(above)
        purpose = presets.Preset("", path).purpose
        copied = next((preset for preset in presets.presets() if purpose and preset.purpose == purpose), None)
        return (file, whole) if copied is None else (f"preset {copied.name}", read_yaml(copied.path))
    except (UserError, OSError):  # it is no config any more
        return None


def _merged(paths: Sequence[Path]) -> Tree:
    tree: Tree = {}
    for path in paths:
        tree = merge(tree, read_yaml(path))
    return tree


def _resolved(tree: Tree) -> Tree | None:
    """With this version's defaults; None where it is no whole config to this version. Plugins are not imported."""
    from megadistill.run.config import RunConfig, dump

    try:
        return dump(RunConfig.model_validate(tree))
    except (ValueError, UserError):
        return None


def _at(tree: Any, key: str, otherwise: Any) -> Any:
    """The value at a dotted key, of lists by number."""
    for part in key.split("."):
        if isinstance(tree, dict) and part in tree:
            tree = tree[part]
        elif isinstance(tree, list) and part.isdigit() and int(part) < len(tree):
            tree = tree[int(part)]
        else:
            return otherwise
    return tree


def _within(key: str, section: str) -> bool:
    return key == section or key.startswith(f"{section}.")


def _short(value: Any) -> str:
    if value is None:
        return ABSENT
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True, sort_keys=False)
    text = text.removesuffix("...\n").strip()
    return text if len(text) <= 240 else text[:237] + "..."
