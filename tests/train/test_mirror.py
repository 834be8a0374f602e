"""Checkpoints copied to another storage: a run comes back from there bit for bit; a broken one stops nothing."""

import json
import os
import shutil
import time
from pathlib import Path

import pytest

from megadistill.core.files import read_lines
from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.testing import processes, workspace
from megadistill.testing.traces import trace


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"))
    prepare(load(path).data, lambda line: None)
    return path


def train(config, *settings, code=0):
    done = processes.megadistill("train", config, *settings)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


@pytest.mark.distributed
def test_a_run_whose_directory_is_gone_goes_on_from_its_copy(config, tmp_path):
    runs, there = config.parent / "runs", tmp_path / "storage"
    train(config, "name=whole")
    train(config, "name=lost", "train.steps=8", "schedule.total_steps=12", f"checkpoint.copy_to=file://{there}")
    assert sorted(p.name for p in (there / "lost" / "checkpoints").iterdir())[-1].startswith("step-00000008-")
    shutil.rmtree(runs / "lost")
    shutil.copytree(there / "lost", runs / "lost")
    assert "continuing at step 8" in train(config, "name=lost", "schedule.total_steps=12")
    assert trace(runs / "lost") == trace(runs / "whole")


@pytest.mark.distributed
def test_a_storage_that_takes_nothing_is_told_and_stops_nothing(config, tmp_path):
    (tmp_path / "file").write_text("where a folder should be")
    said = train(config, "name=uncopied", "train.steps=2", f"checkpoint.copy_to={tmp_path / 'file'}")
    assert "was not copied" in said
    events = read_lines(config.parent / "runs" / "uncopied" / "journal.jsonl")
    assert {"uncopied", "end"} <= {row["event"] for row in events}


@pytest.mark.distributed
def test_a_run_is_over_before_its_last_copy_and_all_ranks_wait_for_that_for_a_while(config, tmp_path):
    run = config.parent / "runs" / "slow"
    command = ["-m", "megadistill", "train", str(config), "name=slow", "train.steps=2", "plugins=[slow_storage]"]
    command += [f"checkpoint.copy_to=slow://{tmp_path}", "batch.micro_size=8"]
    command += ["train.hang_seconds=5", "train.timeout_seconds=40"]
    environ = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])}
    ranks = processes.launch(command, 2, environ)
    deadline = time.monotonic() + 120
    while not (run / "STATUS").exists() or json.loads((run / "STATUS").read_text())["state"] != "done":
        assert time.monotonic() < deadline
        assert ranks[0].poll() is None, ranks[0].communicate()[0]
        time.sleep(0.2)
    assert read_lines(run / "journal.jsonl")[-1]["event"] == "end"
    time.sleep(5)
    assert [rank.poll() for rank in ranks] == [None, None], "one that leaves has its launcher end the other"
    outputs = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    assert f"slow://{tmp_path}/slow has not got everything after 20 s; the same command" in outputs[0]
    assert json.loads((run / "STATUS").read_text())["state"] == "done"


def test_a_storage_that_nothing_installed_knows_is_told_at_once(config):
    done = processes.megadistill("validate", config, "checkpoint.copy_to=nosuch://bucket/runs")
    assert done.returncode == 2
    assert "checkpoint.copy_to" in done.stderr
    assert "nosuch" in done.stderr
