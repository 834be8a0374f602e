"""A rank that no longer moves is ended in time, with its stacks, whatever holds it."""

import re
import socket
import subprocess
import sys
import time

import pytest

from megadistill.train.fallen import blame
from megadistill.train.watchdog import SLACK, Watchdog, hung_file, hung_ranks

HANGS = {
    "asleep": "time.sleep(60)",
    "holding the interpreter's lock": "ctypes.PyDLL(None).sleep(60)",  # PyDLL does not let go of it
}


@pytest.fixture
def run(tmp_path):
    (tmp_path / "logs").mkdir()
    return tmp_path


@pytest.mark.parametrize("hang", HANGS.values(), ids=HANGS)
def test_a_hung_rank_ends_with_its_stack(run, hang):
    code = f"""
import ctypes, sys, time
from pathlib import Path
from megadistill.train.fallen import blame
from megadistill.train.watchdog import Watchdog

def the_place_where_it_hangs():
    {hang}

with Watchdog(Path(sys.argv[1]), 3, 7, step_seconds=0.5, other_seconds=0.5) as watchdog:
    watchdog.enter("step", 12)
    the_place_where_it_hangs()
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, str(run)], timeout=30, check=False)
    assert done.returncode == 1
    assert time.monotonic() - started < 20
    assert "the_place_where_it_hangs" in hung_file(run, 3, 7).read_text()
    assert hung_ranks(run, 3) == [7]
    assert hung_ranks(run, 2) == []
    assert '"step": 12' in (run / "heartbeats" / "rank-0007.json").read_text()
    told = blame(run, 3, run / "logs" / "rank-0000.log")  # what the ranks say that waited for it
    assert re.fullmatch(rf"rank 7 hung: step 12 on {socket.gethostname()} at \d\d:\d\d:\d\d", told.what)
    assert str(hung_file(run, 3, 7)) in told.why
    assert "megadistill doctor --ranks" in told.fix
    assert "the same command goes on" in told.fix


def test_what_ends_in_time_leaves_no_stacks(run):
    with Watchdog(run, 1, 0, step_seconds=60, other_seconds=60) as watchdog:
        watchdog.enter("step", 1)
        assert hung_file(run, 1, 0).exists()
    assert hung_ranks(run, 1) == []
    assert not hung_file(run, 1, 0).exists()
    assert '"left"' in (run / "heartbeats" / "rank-0000.json").read_text()


def test_who_may_wait_for_another_run_is_given_the_time(run):
    with Watchdog(run, 1, 0, step_seconds=100, other_seconds=1000) as watchdog:
        watchdog.enter("teacher", 3, patience=5000)
        assert watchdog.limit() == 6000
        watchdog.enter("evaluate", 3)
        assert watchdog.limit() == 1000


def test_limits_follow_the_phase_and_the_pace(run, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Watchdog(run, 1, 0, step_seconds=100, other_seconds=1000) as watchdog:
        watchdog.enter("restore", 0)
        assert watchdog.limit() == 1000
        watchdog.enter("step", 1)
        assert watchdog.limit() == 1000  # the first step compiles
        clock[0] = 500.0
        watchdog.enter("evaluate and save", 1)
        clock[0] = 510.0
        watchdog.enter("step", 2)
        assert watchdog.limit() == 1000  # how long a step takes is not known yet
        clock[0] = 570.0
        watchdog.enter("step", 3)
        assert watchdog.limit() == SLACK * 60  # a step that is always slow is not hung
        clock[0] = 571.0
        watchdog.enter("step", 4)
        assert watchdog.limit() == SLACK * 60
        watchdog.enter("evaluate and save", 4)
        assert watchdog.limit() == 1000


def test_quick_steps_have_the_limit_that_was_set(run, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with Watchdog(run, 1, 0, step_seconds=100, other_seconds=1000) as watchdog:
        for step in (1, 2, 3):
            watchdog.enter("step", step)
            clock[0] += 1
        assert watchdog.limit() == 100
