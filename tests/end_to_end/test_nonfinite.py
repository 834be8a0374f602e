"""A step that is not finite is skipped and counted; too many in a row end the run with 93, its checkpoints intact."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megadistill.core.files import read_lines
from megadistill.data.prepare import prepare
from megadistill.engine import checkpoint
from megadistill.run.config import load
from megadistill.testing import workspace


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"))
    prepare(load(path).data, lambda line: None)
    return path


def train(config, name, at):
    objectives = f"objectives=[{{kind: hard_ce}}, {{kind: exploding, at: {at}}}]"
    settings = [f"name={name}", objectives, "plugins=[exploding_objective]", "batch.micro_size=16", "train.steps=6"]
    command = [sys.executable, "-m", "megadistill", "train", str(config), *settings]
    command += ["train.max_nonfinite_steps=2", "checkpoint.every_steps=2"]
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    run = config.parent / "runs" / name
    events = [(row["event"], row["step"]) for row in read_lines(run / "journal.jsonl")]
    return done, events, {row["step"]: row for row in read_lines(run / "metrics.jsonl") if "loss_hex" in row}


@pytest.mark.distributed
def test_one_such_step_is_skipped(config):
    done, events, steps = train(config, "skipped", [3])
    assert done.returncode == 0, done.stdout + done.stderr
    assert [step for event, step in events if event == "nonfinite"] == [3]
    assert steps[3]["train/loss"] is None
    assert steps[3]["parameter_hash"] == steps[2]["parameter_hash"] != steps[4]["parameter_hash"]


@pytest.mark.distributed
def test_too_many_in_a_row_end_the_run(config):
    done, events, _ = train(config, "diverged", [3, 4])
    assert done.returncode == 93, done.stdout + done.stderr
    assert "2 non-finite step(s) in a row" in done.stderr
    run = config.parent / "runs" / "diverged"
    assert json.loads((run / "STATUS").read_text())["state"] == "diverged"
    assert [step for event, step in events if event == "nonfinite"] == [3, 4]
    assert [step for step, _, _ in checkpoint.committed(run / "checkpoints")] == [2, 1]
    assert checkpoint.verify(run / "checkpoints") == []
