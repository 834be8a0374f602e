"""Where the presets are, in a checkout and in an installed wheel, and what each says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from megadistill.core.errors import UserError
from megadistill.core.files import atomic_write
from megadistill.run.standalone import standalone

_PACKAGE = Path(__file__).resolve().parent.parent
_FRAGMENTS = "base"
"""Its files are parts for `extends`, no presets."""
_SERVER = "yaml-language-server"
"""What editors' completion of YAML looks for in a comment, with the schema behind it."""


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
        return next((line for line in self.header if line and not line.startswith(_SERVER)), "")


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
        near = get_close_matches(name, found, n=1)
        fix = f"did you mean {near[0]!r}?" if near else "`megadistill presets` describes them"
        raise UserError(f"no preset {name!r}", f"there are: {', '.join(found)}", fix)
    return found[name.removesuffix(".yaml")]


def resolve(file: Path) -> Path:
    """What a FILE argument means: the file, or, where there is none, the preset of that bare name.

    Raises:
        UserError: it is neither, and has no ending as files have.
    """
    if file.exists() or file.suffix:
        return file
    found = {preset.name: preset.path for preset in presets()}
    if str(file) not in found:
        near = get_close_matches(str(file), found, n=1)
        fix = f"did you mean {near[0]!r}?" if near else "`megadistill presets` lists the presets"
        raise UserError(f"no config file {file}, and no preset of that name", "", fix)
    return found[str(file)]


def copy(name: str, target: Path) -> Path:
    """Write a preset to `target` so that it stands alone, comments and all; returns the schema that its first line
    names, for editors."""
    from megadistill.run.config import RunConfig  # the other functions here do without, and are fast
    from megadistill.run.reference import FILE, write_schema

    preset = named(name)
    if target.exists():
        raise UserError(f"{target} exists already", "init overwrites nothing", "choose another name, or remove it")
    with atomic_write(target) as handle:
        handle.write(f"# {_SERVER}: $schema={FILE}\n" + standalone(preset.path, list(RunConfig.model_fields)))
    return write_schema(target)
