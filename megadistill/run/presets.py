"""Where the presets are, in a checkout and in an installed wheel, and what each says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from megadistill.core.errors import UserError
from megadistill.core.files import atomic_write
from megadistill.core.schema import read_yaml

_PACKAGE = Path(__file__).resolve().parent.parent
_FRAGMENTS = "base"
"""Its files are parts for `extends`, no presets."""


@dataclass(frozen=True)
class Preset:
    """One YAML file that runs as it stands."""

    name: str
    """Its path below `configs/` without the ending, as in `tasks/sst2`."""
    path: Path

    @property
    def header(self) -> list[str]:
        """The comment that opens the file: purpose, command, hardware, duration, expected result."""
        header = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            header.append(line.removeprefix("#").strip())
        return header

    @property
    def purpose(self) -> str:
        return next((line for line in self.header if line and not line.startswith("yaml-language-server")), "")


def folder() -> Path:
    """The folder of presets: `configs/` of the checkout, or the copy that a wheel carries."""
    candidates = [_PACKAGE / "_configs", _PACKAGE.parent / "configs"]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise UserError("found no presets", f"looked in {' and '.join(map(str, candidates))}", "install megadistill again")


def presets() -> list[Preset]:
    """All presets, by name."""
    root = folder()
    paths = [path for path in root.rglob("*.yaml") if path.relative_to(root).parts[0] != _FRAGMENTS]
    found = [Preset(path.relative_to(root).with_suffix("").as_posix(), path) for path in paths]
    return sorted(found, key=lambda preset: preset.name)


def named(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: names the presets that there are.
    """
    found = {preset.name: preset for preset in presets()}
    if name.removesuffix(".yaml") not in found:
        raise UserError(f"no preset {name!r}", f"there are: {', '.join(found)}", "`megadistill presets` describes them")
    return found[name.removesuffix(".yaml")]


def resolve(file: Path) -> Path:
    """What a FILE argument means: the file, or, where there is none, the preset of that bare name."""
    if file.exists() or file.suffix:
        return file
    return next((preset.path for preset in presets() if preset.name == str(file)), file)


def copy(name: str, target: Path) -> None:
    """Write a preset to `target` so that it stands alone: what it extends is merged in, its header kept."""
    preset = named(name)
    if target.exists():
        raise UserError(f"{target} exists already", "init overwrites nothing", "choose another name, or remove it")
    text = preset.path.read_text(encoding="utf-8")
    if "extends" in (yaml.safe_load(text) or {}):
        header = "".join(f"# {line}".rstrip() + "\n" for line in preset.header)
        text = header + yaml.safe_dump(read_yaml(preset.path), sort_keys=False, allow_unicode=True, width=110)
    with atomic_write(target) as handle:
        handle.write(text)
