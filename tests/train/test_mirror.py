"""Checkpoints copied to another storage: a run comes back from there bit for bit; a broken one stops nothing."""

import shutil

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
    assert "uncopied" in [row["event"] for row in events]
    assert events[-1]["event"] == "end"


def test_a_storage_that_nothing_installed_knows_is_told_at_once(config):
    done = processes.megadistill("validate", config, "checkpoint.copy_to=nosuch://bucket/runs")
    assert done.returncode == 2
    assert "checkpoint.copy_to" in done.stderr
    assert "nosuch" in done.stderr
