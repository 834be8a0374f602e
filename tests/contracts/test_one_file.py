"""Is a new objective one new file, with nothing else touched? The file is the one that the README shows."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from megadistill.core.files import read_lines
from megadistill.testing import processes, workspace

ROOT = Path(__file__).resolve().parents[2]
OBJECTIVE = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[0]


@pytest.mark.slow
def test_adding_an_objective_is_one_file(tmp_path: Path) -> None:
    config = workspace.make(tmp_path)
    (tmp_path / "small_hidden.py").write_text(OBJECTIVE)
    options = ["plugins=[small_hidden]", "train.steps=3", "log.every_steps=1"]

    def megadistill(*arguments: str) -> subprocess.CompletedProcess[str]:
        return processes.megadistill(*arguments, environ={"PYTHONPATH": str(tmp_path)})

    mistake = megadistill("validate", str(config), *options, "objectives=[{kind: small_hiden}]")
    assert mistake.returncode == 2
    assert "did you mean 'small_hidden'?" in mistake.stderr

    options.append("objectives=[{kind: hard_ce}, {kind: small_hidden, weight: 0.1}]")
    for verb in ("prepare", "train"):
        result = megadistill(verb, str(config), *options)
        assert result.returncode == 0, result.stdout + result.stderr
    rows = read_lines(tmp_path / "runs" / "tiny" / "metrics.jsonl")
    values = [row["train/objective/small_hidden"] for row in rows if "train/objective/small_hidden" in row]
    assert len(values) == 3
    assert all(value > 0 for value in values)
