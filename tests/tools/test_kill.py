"""A few kills of the fifty that tools/kill_test.py is for: nothing may be lost."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "kill_test.py"


@pytest.mark.soak
@pytest.mark.distributed
def test_five_kills_lose_nothing(tmp_path):
    command = [sys.executable, str(TOOL), "--kills", "5", "--seed", "1", "--folder", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0, f"{found}\n{done.stderr}"
    assert found["kills"] == 5
    assert found["max_intervals_lost"] <= 1
    assert found["bitwise"]
    assert (found["committed_checkpoints_lost"], found["rows_twice"], found["rows_missing"]) == (0, 0, 0)
    assert found["rows_audited"] == found["steps"] * 16
