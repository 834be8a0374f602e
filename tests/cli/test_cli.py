"""Do the verbs answer as promised: exit codes, messages without tracebacks, nothing printed twice?"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from megadistill.run.config import check
from megadistill.run.presets import presets
from megadistill.run.show import DEFAULT, annotated
from megadistill.testing import processes
from megadistill.testing.synthetic_run import write_run

ROOT = Path(__file__).resolve().parents[2]
PRESET = str(presets()[0].path)


def megadistill(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return processes.megadistill(*arguments, environ=variables)


def test_every_mistake_is_told_at_once_with_exit_code_2() -> None:
    result = megadistill("validate", PRESET, "train.stepz=3", "batch.global_size=many", "objectivs=[]")
    assert result.returncode == 2
    assert result.stdout == ""
    assert "3 problem(s)" in result.stderr
    assert "train.stepz: unknown key; did you mean 'steps'?" in result.stderr
    assert "objectivs: unknown key; did you mean 'objectives'?" in result.stderr
    assert "Traceback" not in result.stderr


def test_rank_0_speaks_for_all_and_a_rank_with_a_mistake_of_its_own_for_itself() -> None:
    """Launchers kill the other ranks when the first leaves: that must not be a silent one."""
    started = time.monotonic()
    first = megadistill("validate", "missing.yaml", RANK="0", WORLD_SIZE="2")
    between = time.monotonic()
    second = megadistill("validate", "missing.yaml", RANK="1", WORLD_SIZE="2")
    assert first.stderr.startswith("error: no config file")
    assert second.stderr.startswith("error on rank 1: no config file")
    assert time.monotonic() - between > between - started + 3
    assert first.returncode == second.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "missing.yaml"], "no config file missing.yaml"),
        (["prepare", PRESET, "nonsense"], "write key=value"),
        (["train", ROOT / "configs" / "quickstrat.yaml"], f"did you mean {ROOT / 'configs' / 'quickstart.yaml'}?"),
        (["train", "quickstrat"], "did you mean 'quickstart'?"),
        (["init", "distilbart", "x.yaml"], "no preset 'distilbart'"),
        (["init", "distilbart", "x.yaml"], "did you mean 'distilbert'?"),
        (["status", "nowhere"], "nowhere is no run directory"),
        (["verify", "nowhere"], "nowhere is no run directory"),
        (["evaluate", "nowhere"], "nowhere is no run directory"),
        (["export", "nowhere", "--to", "hf"], "nowhere is no run directory"),
        (["report", "nowhere"], "nowhere is no run directory"),
        (["frobnicate"], "No such command"),
    ],
)
def test_what_the_user_can_mend_has_exit_code_2_and_no_traceback(arguments: list[object], message: str) -> None:
    result = megadistill(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


PLUGIN = """
from typing import Literal
from megadistill.models.initialize import Initialize
from megadistill.tasks.augment.base import Augment

class Mirror(Augment):
    kind: Literal["mirror"]

class Zeros(Initialize):
    kind: Literal["zeros"]
"""


def test_a_plugins_kinds_are_known_deep_in_a_config_and_to_editors(tmp_path: Path) -> None:
    (tmp_path / "my_kinds.py").write_text(PLUGIN)
    environ = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    changes = ["student.init={kind: zeros}", "plugins=[my_kinds]"]
    result = megadistill("validate", PRESET, *changes, **environ)
    assert result.returncode == 0, result.stderr
    wrong = ["plugins=[my_kinds]", "task.augment={kind: miror}"]
    result = megadistill("validate", "tasks/finetune_sst2", *wrong, **environ)
    assert "task.augment (glue): unknown kind 'miror'; did you mean 'mirror'?" in result.stderr

    (tmp_path / "mine.yaml").write_text(f"extends: {PRESET}\nplugins: [my_kinds]\n")
    result = megadistill("schema", tmp_path / "mine.yaml", **environ)
    assert result.returncode == 0, result.stderr
    assert {"Mirror", "Zeros"} <= json.loads(result.stdout)["$defs"].keys()
    assert "Mirror" not in json.loads(megadistill("schema", **environ).stdout)["$defs"]


def test_our_own_mistakes_have_a_traceback_and_exit_code_1(tmp_path: Path) -> None:
    (tmp_path / "broken_plugin.py").write_text("1 / 0")
    result = megadistill("validate", PRESET, "plugins=[broken_plugin]", PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert result.returncode == 1
    assert "ZeroDivisionError" in result.stderr


def test_show_prints_yaml_that_is_the_config_with_each_origin_beside_it() -> None:
    result = megadistill("validate", PRESET, "train.steps=123", "--show")
    assert result.returncode == 0
    assert check(yaml.safe_load(result.stdout), "shown").train.steps == 123
    lines = result.stdout.splitlines()
    assert any("steps: 123" in line and line.endswith("# command line") for line in lines)
    assert any(line.endswith(f"# {PRESET}") for line in lines)
    assert any(line.endswith(f"# {DEFAULT}") for line in lines)


def test_shown_trees_are_the_same_tree_again() -> None:
    tree = {"a": [{"b": 1, "c": [1, [2, 3]]}, "x: y"], "empty": {}, "none": None, "text": "1e-3", "list": []}
    assert yaml.safe_load(annotated(tree, {"a.0.b": "file"})) == tree


def test_origins_reach_down_to_what_a_whole_value_holds() -> None:
    shown = annotated({"a": {"b": {"c": 1}}, "d": 2}, {"a.b": "command line"})
    assert shown.splitlines()[2:] == ["    c: 1  # command line", "d: 2      # default"]


def test_a_bare_preset_name_is_found_from_anywhere() -> None:
    assert megadistill("validate", presets()[0].name).returncode == 0


def test_each_step_names_the_next_as_it_is_to_be_typed(tmp_path: Path) -> None:
    mine = tmp_path / "my own.yaml"
    made = megadistill("init", "quickstart", mine).stdout
    assert f"wrote {mine}, and {tmp_path / 'megadistill.schema.json'}" in made
    assert made.endswith(f"next: megadistill validate '{mine}'\n")
    given = ["data.corpora=[{kind: synthetic, num_documents: 40}]", f"data.dir={tmp_path}"]
    typed = f"'{mine}' '{given[0]}' {given[1]}\n"
    assert megadistill("validate", mine, *given).stdout == f"{mine}: valid\nnext: megadistill prepare {typed}"
    assert megadistill("prepare", mine, *given).stdout.endswith(f"next: megadistill train {typed}")
    assert "next: megadistill train tasks/" in megadistill("validate", "tasks/hinton_sst2").stdout


def test_schema_names_every_section_and_reads_as_markdown() -> None:
    schema = json.loads(megadistill("schema").stdout)
    assert {"data", "student", "objectives", "engine"} <= schema["properties"].keys()
    markdown = megadistill("schema", "--markdown").stdout
    assert "## SoftCE (`kind: soft_ce`)" in markdown
    assert "| `seed` | integer | `0` |" in markdown


def test_status_report_and_verify_read_a_run(tmp_path: Path) -> None:
    run = write_run(tmp_path, "distilled")
    assert "300 of 300" in megadistill("status", run).stdout
    result = megadistill("report", run, "--output", tmp_path / "page.html")
    assert result.returncode == 0
    assert (tmp_path / "page.html").exists()
    damaged = megadistill("verify", run)  # its checkpoint is an empty folder
    assert damaged.returncode == 1
    assert "MANIFEST.json is missing" in damaged.stderr


def test_shells_complete_verbs() -> None:
    asked = {"_MEGADISTILL_COMPLETE": "complete_bash", "COMP_WORDS": "megadistill ex", "COMP_CWORD": "1"}
    done = subprocess.run(["megadistill"], env={**os.environ, **asked}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["export"]
