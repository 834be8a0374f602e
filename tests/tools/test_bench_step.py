"""The measurement of a step at a tiny size: its last line says what it promises, and names every part of a step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench_step.py"
PARTS = {
    "teacher forward",
    "student forward",
    "head and other losses",
    "backward",
    "waiting for the others",
    "communication",
    "optimizer",
}


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_tell_what_they_send():
    command = [sys.executable, str(TOOL), "--scaling", "--preset", "small", "--rounds", "1", "--rows", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"seconds_1", "seconds_2", "split_seconds_1", "split_seconds_2", "preset", "ratios"}
    assert found["ratios"]["weak_scaling_efficiency"] == found["seconds_1"] / found["seconds_2"]
    for parts in (found["split_seconds_1"], found["split_seconds_2"]):
        assert set(parts) == PARTS
        assert min(parts.values()) > 0


@pytest.mark.soak
def test_a_step_is_split_into_all_its_parts():
    command = [sys.executable, str(TOOL), "--device", "cpu", "--preset", "small", "--rounds", "1", "--rows", "2"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    parts = found["cases"]["ours"]["split_seconds"]
    assert set(parts) == PARTS | {"data wait"}
    assert min(parts.values()) > 0
    assert set(found["ratios"]) == {
        "speed_vs_textbook",
        "memory_vs_textbook",
        "speed_vs_compiled",
        "compiled_speed_vs_textbook",
        "masked_speed_vs_textbook",
        "masked_memory_vs_textbook",
    }
