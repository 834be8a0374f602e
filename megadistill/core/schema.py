"""How a YAML file becomes a typed, frozen config, and how every mistake in it is named at once.

A swappable part is a `Strict` subclass with `kind: Literal["name"]`; a field annotated `OneOf[Base]` accepts every
kind of `Base` that is imported. `discover(package)` imports a package's modules, so that a new file is all it takes.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import ErrorDetails, core_schema

from megadistill.core.errors import UserError
from megadistill.core.files import nearest

Tree = dict[str, Any]


class Strict(BaseModel):
    """Base of every config section: unknown keys and infinite numbers refused, values frozen, fields documented by
    their docstrings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


# ---------------------------------------------------------------------------------------------- kinds


class _KindUnion:
    """Pydantic metadata: validate against the kinds of the annotated base class that exist when the schema is built."""

    def __get_pydantic_core_schema__(self, base: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        choices = {kind: handler.generate_schema(choice) for kind, choice in kinds(base).items()}
        return core_schema.tagged_union_schema(choices, discriminator="kind")


if TYPE_CHECKING:
    from typing import TypeAlias, TypeVar

    _Base = TypeVar("_Base")
    OneOf: TypeAlias = Annotated[_Base, ""]
else:

    class OneOf:
        """`OneOf[Objective]`: any imported kind of Objective."""

        def __class_getitem__(cls, base: type[Strict]) -> Any:
            return Annotated[base, _KindUnion()]


def kinds(base: type[Strict]) -> dict[str, type[Strict]]:
    """The imported subclasses of `base`, by their `kind`; a kind defined twice is a mistake in the code."""
    found: dict[str, type[Strict]] = {}
    for choice in _subclasses(base):
        field = choice.model_fields.get("kind")
        if field is None:
            continue
        for kind in get_args(field.annotation):
            known = found.setdefault(kind, choice)
            assert known is choice, f"kind {kind!r} is defined by both {known} and {choice}"
    return found


def discover(package: ModuleType) -> None:
    """Import every module of `package`, which defines the kinds in it."""
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


def rebuild(section: type[BaseModel], done: set[type[BaseModel]] | None = None) -> None:
    """Let a section know the kinds that were imported since; what is in it first, for it keeps the schemas that it was
    built with."""
    done = set() if done is None else done
    if section in done:
        return
    done.add(section)
    for field in section.model_fields.values():
        for inner in (*_sections(field.annotation), *_kind_choices(field.annotation).values()):
            rebuild(inner, done)
    section.model_rebuild(force=True)


def _subclasses(base: type[Strict]) -> Iterator[type[Strict]]:
    for choice in base.__subclasses__():
        yield choice
        yield from _subclasses(choice)


# ---------------------------------------------------------------------------------------------- reading


def read_yaml(path: Path, origins: dict[str, str] | None = None) -> Tree:
    """Read a config file; `extends:` (a path or a list of them, relative to the file) is merged underneath it.

    `origins` receives, for every dotted key, the file that its value came from.
    """
    return _read(path, {} if origins is None else origins, ())


def _read(path: Path, origins: dict[str, str], stack: tuple[Path, ...]) -> Tree:
    if path.resolve() in stack:
        raise UserError(f"{path} extends itself", " -> ".join(str(p) for p in (*stack, path)), "break the circle")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = nearest(str(path))
        raise UserError(
            f"no config file {path}",
            f"extended by {stack[-1]}" if stack else "",
            f"did you mean {near}?"
            if near
            else "`megadistill presets` lists the presets; `megadistill init PRESET FILE` copies one",
        ) from None
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"cannot read {path}", str(error), "give a YAML file in UTF-8") from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML", str(error).replace("\n", " "), "mend the line it names") from None
    tree = {} if tree is None else tree
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold a mapping", f"found {type(tree).__name__}", "start from a preset")
    parents = tree.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UserError(
            f"{path}: extends must be a path or a list of paths",
            f"found {parents!r}",
            "name the config files it extends",
        )
    merged: Tree = {}
    for parent in parents:
        merged = merge(merged, _read(path.parent / parent, origins, (*stack, path.resolve())))
    for key, _ in flatten(tree):
        origins[key] = str(path)
    return merge(merged, tree)


def merge(under: Tree, over: Tree) -> Tree:
    """`over` laid on `under`: mappings merge key by key, anything else (lists too) is replaced whole.

    A mapping whose `kind` differs replaces the other whole, since fields of another kind mean nothing to it.
    """
    result = dict(under)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and value.get("kind", old.get("kind")) == old.get("kind"):
            result[key] = merge(old, value)
        else:
            result[key] = value
    return result


def override(tree: Tree, assignments: Sequence[str], origins: dict[str, str] | None = None) -> Tree:
    """Apply `a.b.0.c=value` assignments (values are YAML); returns a new tree, or one error naming all bad ones."""
    problems = []
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key:
            problems.append(f"{text!r}: write key=value, as in train.steps=1000")
            continue
        try:
            parsed = yaml.safe_load(value)
            tree = _assign(tree, key.split("."), parsed)
        except (yaml.YAMLError, KeyError) as error:
            problems.append(f"{text!r}: {error.args[0] if error.args else error}")
            continue
        if origins is not None:
            for leaf, _ in flatten(parsed, key):
                origins[leaf] = "command line"
    if problems:
        raise UserError(f"command line: {len(problems)} problem(s)", "\n  ".join(problems))
    return tree


def _assign(node: Any, path: Sequence[str], value: Any) -> Any:
    if not path:
        return value
    if isinstance(node, list):
        if not path[0].isdigit() or int(path[0]) >= len(node):
            raise KeyError(f"{path[0]!r} is no index of a list of {len(node)}")
        return [_assign(item, path[1:], value) if i == int(path[0]) else item for i, item in enumerate(node)]
    if isinstance(node, dict) or node is None:
        node = node or {}
        return {**node, path[0]: _assign(node.get(path[0]), path[1:], value)}
    raise KeyError(f"{path[0]!r} cannot be set inside the value {node!r}")


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a tree as (dotted key, value)."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    if not items:
        yield prefix, value
    for key, child in items:
        yield from flatten(child, f"{prefix}.{key}" if prefix else str(key))


# ---------------------------------------------------------------------------------------------- explaining


class Problems(ValueError):
    """What a validator raises that has found several things wrong with a section: one line for each."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("; ".join(lines))
        self.lines = list(lines)


def placed(message: str, path: str, section: type[BaseModel] | None, label: str = "") -> str:
    """What a section says of itself, or of one of its fields (`field: ...`), with the path that this has in the config.

    Args:
        label: which section it is, for people.
    """
    field, colon, rest = message.partition(": ")
    if colon and section is not None and field.split(".")[0] in section.model_fields:
        path, message = f"{path}.{field}" if path else field, rest
    name = " ".join(filter(None, (path, label and f"({label})")))
    return f"{name}: {message}" if name else message


def explain(error: ValidationError, model: type[BaseModel], where: str) -> UserError:
    """All problems of a config, each with its path and, for a wrong name, the nearest right one."""
    told: dict[str, list[str]] = {}
    given: dict[str, str] = {}
    for problem in error.errors():
        place = _place(problem["loc"], model)
        if problem["type"] in ("value_error", "assertion_error"):  # a validator of ours
            raised = problem["ctx"]["error"]
            for line in raised.lines if isinstance(raised, Problems) else [str(raised)]:
                told[placed(line, place.path, place.section, place.kind)] = []
        else:  # what may be several things is told once for each of them
            known = [] if place.above is None else list(place.above.model_fields)
            name = placed("", place.path, None, place.kind)
            told.setdefault(name, []).append(_message(problem, known))
            if problem["type"] not in _ABOUT_KEYS:
                given[name] = f" (got {problem['input']!r})"
    lines = [name + " or ".join(_best(texts)) + given.get(name, "") for name, texts in told.items()]
    return UserError(f"{where}: {len(lines)} problem(s)", "\n  ".join(lines))


def _message(problem: ErrorDetails, known: Sequence[str]) -> str:
    """What pydantic found wrong with one value; `known` are the keys that its section has."""
    context = problem.get("ctx", {})
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key; {_suggest(str(problem['loc'][-1]), known)}"
        case "union_tag_invalid":
            expected = [tag.strip(" '") for tag in str(context.get("expected_tags", "")).split(",")]
            return f"unknown kind {context.get('tag')!r}; {_suggest(str(context.get('tag')), expected)}"
        case "union_tag_not_found":
            return "needs a `kind`"
        case "missing":
            return "missing"
        case "literal_error" if isinstance(problem["input"], str):
            suggestion = _suggest(problem["input"], re.findall(r"'([^']+)'", str(context.get("expected"))))
            return problem["msg"] + (f"; {suggestion}" if suggestion.endswith("?") else "")
    return problem["msg"]


_ABOUT_KEYS = ("extra_forbidden", "missing", "union_tag_invalid", "union_tag_not_found")


def _best(messages: Sequence[str]) -> list[str]:
    """A near miss of one thing that a value may be is hardly meant as another."""
    near = [message for message in messages if "did you mean" in message]
    return near or list(dict.fromkeys(messages))


def _suggest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"


@dataclass(frozen=True)
class _Place:
    """Where in a config a problem is."""

    path: str
    """As an override names it: without the kinds and branches that pydantic counts in."""
    kind: str
    """Of the section around it, where it has one."""
    section: type[BaseModel] | None
    """The section that it is; None where it is a value."""
    above: type[BaseModel] | None
    """The section that the last part of the path belongs to."""


def _place(location: Sequence[int | str], model: type[BaseModel]) -> _Place:
    current: Any = model
    path: list[str] = []
    kind, above = "", None
    for part in location:
        section = None if isinstance(current, dict) else _section(current)
        choices = current if isinstance(current, dict) else _kind_choices(current)
        if isinstance(part, int):
            path.append(str(part))
        elif section is not None and part in section.model_fields:
            field = section.model_fields[part]
            union = any(isinstance(item, _KindUnion) for item in field.metadata)
            current = kinds(field.annotation) if union and isinstance(field.annotation, type) else field.annotation
            path.append(part)
            above = section
        elif part in choices:
            current, kind = choices[part], part
        elif section is not None or not _BRANCH.search(part):
            path.append(part)
            above = section
    return _Place(".".join(path), kind, None if isinstance(current, dict) else _section(current), above)


_BRANCH = re.compile(r"\[|^(constrained-)?(int|str|float|bool)$")
"""How pydantic names what a value of several types was tried as."""


def _section(annotation: Any) -> type[BaseModel] | None:
    """The first config section inside an annotation such as `X | None` or `list[X]`."""
    return next(_sections(annotation), None)


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections(part)


def _kind_choices(annotation: Any) -> dict[str, type[Strict]]:
    found: dict[str, type[Strict]] = {}
    for section in _sections(annotation):
        if issubclass(section, Strict):
            own = section.model_fields.get("kind")
            found |= {kind: section for kind in get_args(own.annotation if own else None)} | kinds(section)
    return found
