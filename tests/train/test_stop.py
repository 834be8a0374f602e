"""Do signals and control files ask for a stop without doing anything else?"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megadistill.train import stop
from megadistill.train.stop import ROLLBACK, SAVE, STOP


@pytest.fixture(autouse=True)
def _handlers():
    before = {number: signal.getsignal(number) for number in stop.SIGNALS}
    stop.install()
    yield
    stop._received.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", stop.SIGNALS)
@pytest.mark.parametrize("is_main", [True, False])
def test_a_signal_to_any_rank_asks_for_a_stop(number, is_main, tmp_path):
    assert not stop.requested()
    assert stop.word(tmp_path, is_main) == 0
    os.kill(os.getpid(), number)
    assert stop.requested()
    assert stop.word(tmp_path, is_main) == STOP
    assert stop.reason() == number.name


def test_the_second_interrupt_interrupts():
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.reason() == "SIGTERM, SIGINT"


def test_repeated_scheduler_signals_only_repeat_the_wish(tmp_path):
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.word(tmp_path, True) == STOP


def test_control_files_are_seen_by_rank_0_and_taken_away_once_acted_on(tmp_path):
    (tmp_path / "SAVE").touch()
    assert stop.word(tmp_path, True) == SAVE
    assert stop.word(tmp_path, False) == 0
    stop.done(tmp_path, SAVE)
    assert stop.word(tmp_path, True) == 0
    (tmp_path / "SAVE").touch()
    (tmp_path / "STOP").touch()
    assert stop.word(tmp_path, True) == STOP | SAVE
    stop.done(tmp_path, STOP)
    assert list(tmp_path.iterdir()) == []


def test_a_save_does_not_swallow_a_stop_that_came_meanwhile(tmp_path):
    (tmp_path / "STOP").touch()
    stop.done(tmp_path, SAVE)
    assert stop.word(tmp_path, True) == STOP


@pytest.mark.parametrize(("text", "first"), [("", 7), ("3\n", 3), ("0", 1), ("-4", math.inf), ("soon", math.inf)])
def test_a_rollback_says_from_where(tmp_path, text, first):
    (tmp_path / "ROLLBACK").write_text(text)
    assert stop.word(tmp_path, True) == ROLLBACK
    assert stop.first_to_undo(tmp_path, since=7) == first
    stop.done(tmp_path, ROLLBACK)
    assert stop.word(tmp_path, True) == 0


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
