"""The measurement of int8 ONNX at a tiny size: it says what it promises, and the README's table shows it."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from megadistill.testing import task_files

pytest.importorskip("onnxruntime")

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.mark.slow
def test_it_times_three_ways_to_answer(tmp_path):
    tokenizer = task_files.tokenizer(tmp_path / "tokenizer")
    command = [sys.executable, str(TOOLS / "bench_int8.py"), "--json", "--glue", str(task_files.stsb(tmp_path))]
    command += ["--tokenizer", str(tokenizer), "--rows", "12", "--repeats", "3", "--threads", "1", "--layers", "1"]
    done = subprocess.run([*command, "--width", "64"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["rows"], found["threads"], found["repeats"]) == (12, 1, 3)
    assert 8 < found["tokens_a_row"] < 20
    low, high = found["int8_faster_range"]
    assert 0 < low <= found["int8_faster"] <= high
    assert found["int8_megabytes"] < found["onnx_megabytes"]
    specification = importlib.util.spec_from_file_location("export_tables", TOOLS / "export_tables.py")
    tables = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tables)
    assert tables.int8_table(tmp_path) == ""
    (tmp_path / "int8").mkdir()
    kept = {"environment": {"numerics": {"cpu": "A CPU"}}, "result": found}
    (tmp_path / "int8" / "threads1.json").write_text(json.dumps(kept))
    assert f"| A CPU, 1 thread | {found['ms_torch']:.1f} ms |" in tables.int8_table(tmp_path)
