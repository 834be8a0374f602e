"""Is a preset that `init` copies the same config, as it was written, and one that an editor can complete?"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from megadistill.core.errors import UserError
from megadistill.core.schema import read_yaml
from megadistill.run import presets
from megadistill.run.config import RunConfig
from megadistill.run.standalone import standalone


@pytest.mark.parametrize("name", [preset.name for preset in presets.presets()])
def test_it_stands_alone_with_every_comment_of_its_own(name: str) -> None:
    path = presets.named(name).path
    text = standalone(path, list(RunConfig.model_fields))
    assert yaml.safe_load(text) == read_yaml(path)
    assert "extends" not in yaml.safe_load(text)
    own = [line.partition("#")[2] for line in path.read_text().splitlines() if "#" in line]
    assert [comment for comment in own if comment not in text] == []


def test_what_is_taken_from_another_file_is_as_it_is_written_there(tmp_path: Path) -> None:
    """Sections merge key by key, as in `schema.merge`."""
    (tmp_path / "base.yaml").write_text(
        "# The base.\n"
        "data:\n"
        "  # where\n"
        "  dir: a # here\n"
        "  order: {kind: x, by: 1} # flow\n"
        "train: {steps: 1, more: 2}\n"
        "log: 3 # kept\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "# Mine.\nextends: [base.yaml]\ntrain: {steps: 5} # fewer\ndata:\n  size: 4 # new\n  order: {kind: y} # other\n"
    )
    assert standalone(tmp_path / "mine.yaml", ["train"]) == (
        "# Mine.\n"
        "train: {steps: 5, more: 2}\n"
        "data:\n"
        "  # where\n"
        "  dir: a # here\n"
        "  order: {kind: y} # other\n"
        "  size: 4 # new\n"
        "log: 3 # kept\n"
    )


def test_the_schema_lies_beside_the_copy_which_names_it_first(tmp_path: Path) -> None:
    mine = tmp_path / "folder" / "mine.yaml"
    schema = presets.copy("quickstart", mine)
    first = mine.read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={schema.name}"
    assert schema.parent == mine.parent
    assert "objectives" in json.loads(schema.read_text())["properties"]
    with pytest.raises(UserError, match="exists already"):
        presets.copy("quickstart", mine)
