"""A whole run on a GPU: its steps ask the host for nothing, hold what was planned, and are gone on with bit for bit."""

import json
from itertools import product
from pathlib import Path

import pytest
import torch

from megadistill.core.files import read_lines
from megadistill.testing import planned, processes, workspace

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
GPU = {"DS_ACCELERATOR": "cuda"}
TESTS = Path(__file__).parents[1]
OBJECTIVES = "objectives=[{kind: soft_ce, temperature: 2}, {kind: hard_ce}, {kind: cosine}, {kind: hidden_mse}]"
SPECS = [
    {"layers": layers, "hidden": hidden, "micro": micro, "stage": stage, "precision": "fp32", "accumulation": 1}
    for (layers, hidden, micro), stage in product([(4, 512, 64), (6, 768, 128)], range(4))
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"))
    done = processes.megadistill("prepare", path)
    assert done.returncode == 0, done.stderr
    return path


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_pass_waits_for_the_gpu(config, precision):
    changes = [OBJECTIVES, "engine.zero_stage=1", f"engine.precision={precision}", "batch.micro_size=8"]
    worker = str(TESTS / "train" / "sync_worker.py")
    lines = processes.run([worker, str(config), json.dumps(changes)], 1, GPU)[0].splitlines()
    steps = [json.loads(line) for line in lines if line.startswith("{")]
    assert [step["passes"] for step in steps] == [{}] * 3


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(config, stage):
    run = config.parent / "runs" / f"gpu{stage}"
    options = [f"name={run.name}", f"engine.zero_stage={stage}", "engine.precision=bf16", "train.deterministic=true"]

    def train(*more):
        return processes.run(["-m", "megadistill", "train", str(config), *options, *more], 1, GPU)[0]

    def trace(attempt):
        rows = [row for row in read_lines(run / "metrics.jsonl") if row["attempt"] == attempt and "loss_hex" in row]
        return {row["step"]: (row["loss_hex"], row["train/gradient_norm"], row["parameter_hash"]) for row in rows}

    train("checkpoint.keep=3")
    whole = trace(1)
    assert sorted(whole) == list(range(1, 13))
    next((run / "checkpoints").glob("step-00000012-*")).joinpath("MANIFEST.json").unlink()
    train("checkpoint.keep=3")
    again = trace(2)
    assert sorted(again) == list(range(7, 13))
    assert {step: whole[step] for step in again} == again


def test_a_run_goes_on_at_another_stage(config):
    run = config.parent / "runs" / "restaged"
    for steps, stage in ((12, 1), (15, 2), (18, 3), (21, 1)):
        options = [f"name={run.name}", f"engine.zero_stage={stage}", "engine.precision=bf16", "schedule.total_steps=60"]
        processes.run(["-m", "megadistill", "train", str(config), *options, f"train.steps={steps}"], 1, GPU)
        rows = [row for row in read_lines(run / "metrics.jsonl") if "loss_hex" in row]
    assert max(row["step"] for row in rows) == 21
    assert all(float.fromhex(row["loss_hex"]) > 0 for row in rows)


def test_the_first_step_is_compared_with_the_plan(config):
    processes.run(["-m", "megadistill", "train", str(config), "name=compared", "train.steps=2"], 1, GPU)
    events = read_lines(config.parent / "runs" / "compared" / "journal.jsonl")
    (found,) = [event for event in events if event["event"] == "rehearsal"]
    assert found["measured"] > 0
    assert found["estimated"] > 0


@pytest.fixture(scope="module")
def allocated():
    output = processes.run([str(TESTS / "plan" / "memory_worker.py"), json.dumps(SPECS)], 1, GPU, timeout=300)[0]
    return [int(line) for line in output.splitlines() if line.isdigit()]


@pytest.mark.parametrize("number", range(len(SPECS)), ids=[" ".join(map(str, s.values())) for s in SPECS])
def test_the_planned_peak_is_within_15_percent_of_the_allocators(allocated, number):
    spec = SPECS[number]
    found = planned.peak(spec, 1, on_gpu=True)
    print(f"{found / allocated[number] - 1:+.1%} of {allocated[number] / 2**20:.1f} MiB")
    assert found == pytest.approx(allocated[number], rel=0.15)
