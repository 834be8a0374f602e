"""The data tools at a small size: they say what they promise, and notice what they look for."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megadistill.data.order import Order

TOOLS = Path(__file__).resolve().parents[2] / "tools"


def tool(name: str):
    specification = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_simulation_counts_every_row_once_and_measures_a_restart():
    command = [sys.executable, str(TOOLS / "simulate_order.py"), "--json", "--tokens", "2e9", "--shards", "2000"]
    result = subprocess.run([*command, "--audited-windows", "1"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["rows_twice"] == found["rows_missing"] == 0
    assert found["rows_audited"] == 1_048_576
    assert found["kills"] > 0
    assert found["restart_seconds"] < 10
    assert found["rank_memory_mb"] > found["python_and_numpy_mb"] > 10


@pytest.mark.parametrize(("change", "kind"), [(1, "rows_missing"), (-1, "rows_twice")])
def test_the_audit_notices_a_step_that_is_left_out_or_taken_twice(monkeypatch, change, kind):
    simulation = tool("simulate_order")
    honest = simulation.ranks_logs

    def wrong(order: Order, sizes, step: int, world: int) -> np.ndarray:
        return honest(order, sizes, step + change * (step == 60), world)

    monkeypatch.setattr(simulation, "ranks_logs", wrong)
    assert simulation.audit(4_000_000, 0, 1)[kind] == 8192


def test_show_shard_prints_the_text_of_rows(tmp_path, capsys):
    from megadistill.data.config import DataConfig
    from megadistill.data.prepare import prepare

    (tmp_path / "text.txt").write_text("the first document\nthe second one")
    values = {"dir": tmp_path / "shards", "tokenizer": "megadistill/assets/quickstart_teacher", "sequence_length": 32}
    corpus = {"kind": "text", "files": [str(tmp_path / "text.txt")], "document": "line"}
    prepare(DataConfig.model_validate(values | {"corpora": [corpus], "held_out": {"fraction": 0}}), lambda line: None)
    show = tool("show_shard").show
    show(tmp_path / "shards" / "text" / "train", [0], values["tokenizer"])
    printed = capsys.readouterr().out
    assert "1 rows of 32 tokens in 1 tars" in printed
    assert "the first document" in printed
    assert "[2]" in printed
    with pytest.raises(Exception, match="has no row 9"):
        show(tmp_path / "shards" / "text" / "train", [9], None)
