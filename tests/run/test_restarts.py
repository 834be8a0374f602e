"""A scheduler does not restart for ever what gets nowhere."""

import os
import socket
import subprocess
import sys

import pytest

from megadistill.core.errors import Exit, UserError
from megadistill.run.restarts import NoProgress, refuse_fruitless, refuse_live, restarted_by_scheduler


def event(attempt, name, **facts):
    return {"attempt": attempt, "event": name, **facts}


CRASHES = [event(n, "end", state="failed", error=f"RuntimeError: {n}") for n in (3, 4, 5)]


def test_restarts_without_a_checkpoint_end_with_the_last_error():
    with pytest.raises(NoProgress, match="the last 3 attempts wrote no checkpoint") as caught:
        refuse_fruitless([event(2, "save"), *CRASHES], attempt=6, limit=3)
    assert "RuntimeError: 5" in str(caught.value)
    assert caught.value.exit_code == Exit.NEVER_REQUEUE


@pytest.mark.parametrize("progress", [event(4, "save"), event(5, "signal"), event(4, "end", state=None)])
def test_a_checkpoint_a_signal_and_a_good_end_are_progress(progress):
    refuse_fruitless([event(2, "save"), *CRASHES[:1], progress], attempt=6, limit=3)


def test_an_attempt_that_was_killed_without_a_word_counts():
    refuse_fruitless([event(1, "save")], attempt=4, limit=3)
    with pytest.raises(NoProgress, match="they left no word"):
        refuse_fruitless([event(1, "save")], attempt=5, limit=3)
    with pytest.raises(NoProgress):
        refuse_fruitless([], attempt=4, limit=3)


def test_an_attempt_that_went_back_neither_counts_nor_is_progress():
    events = [event(1, "save"), event(2, "rollback"), event(3, "rollback"), event(4, "rollback")]
    refuse_fruitless(events, attempt=5, limit=1)
    with pytest.raises(NoProgress, match="the last 2 attempts"):
        refuse_fruitless([event(2, "save"), *CRASHES[:1], event(4, "rollback"), *CRASHES[2:]], attempt=6, limit=1)


def test_only_a_schedulers_restart_is_one():
    assert not restarted_by_scheduler({})
    assert not restarted_by_scheduler({"SLURM_RESTART_COUNT": "0"})
    assert restarted_by_scheduler({"SLURM_RESTART_COUNT": "1"})


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A Slurm that knows one running job, 7, as its `squeue` answers (tests/slurm asks a real one)."""
    program = tmp_path / "squeue"
    program.write_text('#!/bin/bash\n[[ "$*" != *"--job 7 "* ]] || echo 7\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def owner(**changes):
    return {"attempt": 3, "host": "elsewhere", "pid": 1, "slurm_job": "7", "started": "now", **changes}


def test_a_run_that_another_job_trains_is_left_alone(squeue):
    with pytest.raises(UserError, match="attempt 3 of this run is training it"):
        refuse_live(owner(), {})
    with pytest.raises(UserError, match="Slurm job 7"):
        refuse_live(owner(), {"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "1"})
    refuse_live(owner(slurm_job="6"), {})
    refuse_live(owner(), {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"})  # lost sight of, and restarted
    refuse_live({}, {})


def test_a_run_that_lives_on_this_host_is_left_alone():
    code = "import time; print('here', flush=True); time.sleep(60)"
    sleeper = subprocess.Popen([sys.executable, "-c", code, "megadistill"], stdout=subprocess.PIPE, text=True)
    try:
        assert sleeper.stdout is not None
        sleeper.stdout.readline()
        here = owner(host=socket.gethostname(), pid=sleeper.pid, slurm_job=None)
        with pytest.raises(UserError, match=f"pid {sleeper.pid}"):
            refuse_live(here, {})
    finally:
        sleeper.kill()
        sleeper.wait()
    refuse_live(here, {})
