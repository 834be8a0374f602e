"""A run that ends before its first step says so where train.sbatch sends its user: in STATUS, and in the journal."""

import json

import pytest

from megadistill.core.dist import World
from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.run.directory import RunDirectory
from megadistill.testing import processes, workspace


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"))
    prepare(load(path).data, lambda line: None)
    return path


@pytest.mark.distributed
def test_a_run_that_restarts_do_not_help(config, monkeypatch):
    restarted = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
    for name, value in restarted.items():
        monkeypatch.setenv(name, value)
    settings = ["name=given-up", "batch.micro_size=16", "train.max_fruitless_restarts=1"]
    run = RunDirectory.open(load(config, settings), False, World())
    run.claim()  # killed before it said a word
    done = processes.megadistill("train", config, *settings, environ=restarted)
    assert done.returncode == 93, done.stdout + done.stderr
    status, last = json.loads(run.status_file.read_text()), run.events()[-1]
    assert (status["state"], status["attempt"]) == ("failed", 2)
    assert (last["event"], last["state"], last["attempt"]) == ("end", "failed", 2)
    assert status["error"] == last["error"]
    assert status["error"].startswith("NoProgress: the last 1 attempts wrote no checkpoint")
