"""A step that is not finite is skipped and counted; too many in a row are undone and their rows left out; and a run
that must go back too often ends with 93, its checkpoints intact."""

import json
from pathlib import Path

import pytest

from megadistill.core.dist import World
from megadistill.core.files import read_lines
from megadistill.data.prepare import prepare
from megadistill.data.stream import Stream
from megadistill.engine import checkpoint
from megadistill.run.config import load
from megadistill.testing import processes, workspace


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"))
    prepare(load(path).data, lambda line: None)
    return path


def train(config, name, exploding, *more):
    objectives = f"objectives=[{{kind: hard_ce}}, {{kind: exploding, {exploding}}}]"
    settings = [f"name={name}", objectives, "plugins=[exploding_objective]", "batch.micro_size=16", "train.steps=6"]
    settings += ["train.max_nonfinite_steps=2", "checkpoint.every_steps=2", "log.rows=true", *more]
    done = processes.megadistill("train", config, *settings, environ={"PYTHONPATH": str(Path(__file__).parent)})
    run = config.parent / "runs" / name
    events = [(row["event"], row["step"]) for row in read_lines(run / "journal.jsonl")]
    return done, events, {row["step"]: row for row in read_lines(run / "metrics.jsonl") if "loss_hex" in row}


@pytest.mark.distributed
def test_one_such_step_is_skipped(config):
    done, events, steps = train(config, "skipped", "at: [3]")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [step for event, step in events if event == "nonfinite"] == [3]
    assert steps[3]["train/loss"] is None
    assert steps[3]["parameter_hash"] == steps[2]["parameter_hash"] != steps[4]["parameter_hash"]


@pytest.mark.distributed
def test_bad_rows_are_undone_and_left_out(config):
    settings = load(config)
    stream = Stream(settings.data, World(), 16, 16, settings.seed)
    rows = [stream.take(step)[0].rows.tolist() for step in range(8)]
    done, events, steps = train(config, "undone", f"rows: {rows[2] + rows[3]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [step for event, step in events if event == "nonfinite"] == [3, 4]
    assert [(event, step) for event, step in events if event in ("rollback", "resume")] == [
        ("rollback", 4),
        ("resume", 2),
    ]
    logged = read_lines(config.parent / "runs" / "undone" / "logs" / "rows-rank-0000.jsonl")
    trained = {row["step"]: row["rows"] for row in logged}  # as the last attempt left it
    assert [trained[step] for step in range(1, 7)] == [rows[step] for step in (0, 1, 4, 5, 6, 7)]
    assert all(row["train/loss"] is not None for row in steps.values())

    # and a later start still leaves them out
    done, events, _ = train(config, "undone", f"rows: {rows[2] + rows[3]}", "train.steps=7", "schedule.total_steps=6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [step for event, step in events if event == "nonfinite"] == [3, 4]


@pytest.mark.distributed
def test_a_person_can_have_steps_undone(config):
    run = config.parent / "runs" / "asked"
    done, *_ = train(config, "asked", "at: []", "train.steps=4", "schedule.total_steps=6", "checkpoint.keep=3")
    assert done.returncode == 0, done.stdout + done.stderr
    (run / "control" / "ROLLBACK").write_text("2\n")
    done, events, steps = train(config, "asked", "at: []")
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(event, step) for event, step in events if event in ("rollback", "resume")] == [
        ("resume", 4),
        ("rollback", 4),
        ("resume", 1),
    ]
    assert "steps 2 to 4 are undone: control/ROLLBACK" in done.stdout + done.stderr
    assert sorted(steps) == [1, 2, 3, 4, 5, 6]
    assert not (run / "control" / "ROLLBACK").exists()


@pytest.mark.distributed
def test_too_many_in_a_row_end_the_run(config):
    done, events, _ = train(config, "diverged", "at: [3, 4]", "train.max_rollbacks=0")
    assert done.returncode == 93, done.stdout + done.stderr
    assert "2 bad step(s) in a row, the last a nonfinite one" in done.stderr
    run = config.parent / "runs" / "diverged"
    assert json.loads((run / "STATUS").read_text())["state"] == "diverged"
    assert [step for event, step in events if event == "nonfinite"] == [3, 4]
    assert [step for step, _, _ in checkpoint.committed(run / "checkpoints")] == [2, 1]
    assert checkpoint.verify(run / "checkpoints") == []
