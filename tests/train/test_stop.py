"""Do signals and control files ask for a stop without doing anything else?"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megadistill.train import stop
from megadistill.train.stop import Want


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in stop.SIGNALS}
    stop.install()
    yield
    stop._received.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", stop.SIGNALS)
def test_a_signal_asks_for_a_stop(number):
    assert not stop.requested()
    assert stop.wanted(None) == Want.NOTHING
    os.kill(os.getpid(), number)
    assert stop.requested()
    assert stop.wanted(None) == Want.STOP
    assert stop.reason() == number.name


def test_the_second_interrupt_interrupts():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.reason() == "SIGTERM, SIGINT"


def test_repeated_scheduler_signals_only_repeat_the_wish():
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.wanted(None) == Want.STOP


def test_control_files_are_seen_and_taken_away_once_acted_on(tmp_path):
    assert stop.wanted(tmp_path) == Want.NOTHING
    (tmp_path / "SAVE").touch()
    assert stop.wanted(tmp_path) == Want.SAVE
    stop.done(tmp_path, Want.SAVE)
    assert stop.wanted(tmp_path) == Want.NOTHING
    (tmp_path / "SAVE").touch()
    (tmp_path / "STOP").touch()
    assert stop.wanted(tmp_path) == Want.STOP
    stop.done(tmp_path, Want.STOP)
    assert list(tmp_path.iterdir()) == []


def test_a_periodic_save_does_not_swallow_a_stop_that_came_meanwhile(tmp_path):
    (tmp_path / "STOP").touch()
    stop.done(tmp_path, Want.SAVE)
    assert stop.wanted(tmp_path) == Want.STOP


@pytest.mark.parametrize(
    ("wishes", "decision"),
    [
        ([Want.NOTHING] * 4, Want.NOTHING),
        ([Want.SAVE, Want.NOTHING], Want.SAVE),
        ([Want.SAVE, Want.STOP], Want.STOP),
        ([Want.SAVE] * 4096, Want.SAVE),
        ([Want.STOP] * 4096, Want.STOP),
    ],
)
def test_the_sum_over_ranks_tells_what_any_wants(wishes, decision):
    assert stop.decide(float(sum(wishes))) == decision


def test_installed_before_torch_a_signal_during_imports_is_kept():
    code = """
import os, signal, sys
from megadistill.train import stop
assert "torch" not in sys.modules
stop.install()
os.kill(os.getpid(), signal.SIGUSR1)
assert stop.requested()
os._exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2])
    assert done.returncode == 7
