"""Does the reference say all that can stand in a config, and do editors get a schema that every preset follows?"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from megadistill.run import presets
from megadistill.run.config import RunConfig
from megadistill.run.reference import json_schema, markdown

FILES = sorted(presets.folder().rglob("*.yaml"), key=lambda path: path.name)


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    Draft202012Validator.check_schema(json_schema())
    return Draft202012Validator(json_schema())


def told(schema: Draft202012Validator, text: str) -> list[str]:
    return [error.json_path for error in schema.iter_errors(yaml.safe_load(text))]


def test_every_key_of_every_section_has_a_meaning() -> None:
    whole = RunConfig.model_json_schema()
    sections = {"RunConfig": whole, **whole["$defs"]}
    without = [name for name, section in sections.items() if not section.get("description")]
    without += [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, field in section.get("properties", {}).items()
        if key != "kind" and not field.get("description")
    ]
    assert without == []
    for name, section in sections.items():
        assert f"\n## {name}" in markdown() or "properties" not in section


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name != "base"], ids=lambda path: path.stem)
def test_every_preset_follows_the_schema(schema: Draft202012Validator, path: Path) -> None:
    assert told(schema, path.read_text()) == []


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("batch: {global_size: 32, micro_sise: 16}", "$.batch"),
        ("train: {steps: many}", "$.train.steps"),
        ("objectives: [{kind: soft_se}]", "$.objectives[0]"),
        ("teacher: {kind: online, paths: x}", "$.teacher"),
        ("trian: {steps: 3}", "$"),
    ],
)
def test_an_editor_sees_what_is_wrong(schema: Draft202012Validator, change: str, place: str) -> None:
    quickstart = presets.named("quickstart").path.read_text()
    changed = yaml.safe_dump({**yaml.safe_load(quickstart), **yaml.safe_load(change)})
    assert told(schema, changed) == [place]
    assert told(schema, f"extends: quickstart.yaml\n{change}\n") == [place]


def test_what_a_run_needs_may_be_in_what_a_file_extends_and_nowhere_else(schema: Draft202012Validator) -> None:
    assert told(schema, "extends: quickstart.yaml\ndata: {dir: elsewhere}\nteacher: {guard: null}\n") == []
    assert told(schema, "data: {dir: elsewhere}\n") == ["$"]
