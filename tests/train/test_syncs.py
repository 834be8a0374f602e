"""The host never waits for a number inside a step: it asks for what a GPU computes when the step is over."""

import json
from pathlib import Path

import pytest

from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.testing import workspace
from megadistill.testing.processes import run

WORKER = str(Path(__file__).with_name("sync_worker.py"))
OBJECTIVES = "objectives=[{kind: soft_ce, temperature: 2}, {kind: hard_ce}, {kind: cosine}, {kind: hidden_mse}]"
pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"))
    prepare(load(path).data, lambda line: None)
    return path


@pytest.mark.parametrize("stage", [1, 2])
def test_passes_ask_for_no_number_and_the_update_for_a_few_whatever_the_micro_batches(config, stage):
    asked = {}
    for micro in (16, 4):
        changes = [OBJECTIVES, f"engine.zero_stage={stage}", f"batch.micro_size={micro}"]
        lines = run([WORKER, str(config), json.dumps(changes)], 1)[0].splitlines()
        steps = [json.loads(line) for line in lines if line.startswith("{")]
        assert [step["micro_batches"] for step in steps] == [16 // micro] * 3
        assert [step["passes"] for step in steps] == [{}] * 3
        asked[micro] = sum(steps[1]["update"].values())
        print(steps[1]["update"])  # by where
    assert 0 < asked[16] == asked[4] <= 8, "whether the gradient is finite, and its norm"
