"""What can stand in a config: JSON schema for editors, markdown for people; both from field docstrings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megadistill.core.files import write_json
from megadistill.core.schema import Tree
from megadistill.run.config import RunConfig

FILE = "megadistill.schema.json"
"""Where `init` puts the schema, beside the config whose first line names it."""


def json_schema() -> Tree:
    """JSON schema of a config file. What it extends, if anything, may hold what a run needs."""
    whole = RunConfig.model_json_schema()
    needed = whole["required"]
    schema: Tree = _partial(whole)
    files = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    schema["properties"]["extends"] = files | {"description": "Config files that this one is laid on, beside it."}
    schema["anyOf"] = [{"required": ["extends"]}, {"required": needed}]
    return schema


def write_schema(config: Path) -> Path:
    """Put the schema beside a config; returns where."""
    write_json(config.parent / FILE, json_schema())
    return config.parent / FILE


def _partial(schema: Any) -> Any:
    """With every key left to be missing, also the `kind` that tells the sections of a union apart."""
    if isinstance(schema, list):
        return [_partial(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key not in ("required", "discriminator", "oneOf")}
    if "oneOf" in schema:
        kept["anyOf"] = schema["oneOf"]
    return {key: _partial(value) for key, value in kept.items()}


def markdown() -> str:
    """A reference of every section and kind: key, type, default, meaning."""
    schema = RunConfig.model_json_schema()
    sections = schema.pop("$defs", {})
    parts = ["# Config reference", *_section("RunConfig", schema)]
    for name, section in sections.items():
        if "properties" in section:
            parts += _section(name, section)
    return "\n".join(parts) + "\n"


def _section(name: str, section: Tree) -> Iterator[str]:
    kind = section["properties"].get("kind", {}).get("const")
    yield f"\n## {name}" + (f" (`kind: {kind}`)" if kind else "") + "\n"
    if text := section.get("description"):
        yield _one_paragraph(text) + "\n"
    fields = {key: field for key, field in section["properties"].items() if key != "kind"}
    if not fields:
        return
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    required = section.get("required", [])
    for key, field in fields.items():
        default = "required" if key in required else f"`{_default(field)}`"
        yield f"| `{key}` | {_type(field)} | {default} | {_one_paragraph(field.get('description', ''))} |"


def _type(field: Tree) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for union in ("anyOf", "oneOf"):
        if union in field:
            return " or ".join(_type(choice) for choice in field[union])
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    limits = [f"{sign} {field[key]}" for key, sign in _LIMITS.items() if key in field]
    return " ".join([str(field.get("type", "any")), *limits])


_LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def _default(field: Tree) -> str:
    value = field.get("default")
    return "see there" if isinstance(value, dict) else json.dumps(value)


def _one_paragraph(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
