"""Is what a run writes down complete, exact, and readable by people and programs?"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from pathlib import Path

import pytest

from megadistill.core import log
from megadistill.core.files import read_lines
from megadistill.run.directory import RunDirectory
from megadistill.train import progress
from megadistill.train.record import Recorder


class Log:
    every_steps = 10
    tensorboard = False
    services = ()


VALUES = {
    "train/loss": 2.9130000000000003,
    "train/objective/soft_ce": 2.41,
    "train/objective/hard_ce": 1.98,
    "train/objective/cosine": 0.11,
    "teacher/loss": 1.8,
    "train/learning_rate": 4.8e-4,
    "train/gradient_norm": 1.0,
    "train/tokens_per_second": 61234.0,
}


@pytest.fixture
def directory(tmp_path):
    yield RunDirectory(tmp_path)
    log.close()


def test_a_step_is_one_exact_line(directory):
    recorder = Recorder(directory, Log(), 3, True)
    recorder.step(1200, VALUES, {"parameter_hash": "abc"})
    (row,) = read_lines(directory.metrics)  # on disk before close
    recorder.close()
    assert {name: row[name] for name in VALUES} == VALUES
    assert (row["step"], row["attempt"], row["parameter_hash"]) == (1200, 3, "abc")
    assert float.fromhex(row["loss_hex"]) == VALUES["train/loss"]
    assert row["time"]
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert row["train/memory_gb"] == pytest.approx(int(peak) * 1024 / 1e9, rel=0.05)


def test_other_ranks_write_nothing(directory, tmp_path):
    recorder = Recorder(directory, Log(), 1, False, total_steps=10)
    recorder.step(1, VALUES)
    recorder.close()
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_no_number_is_valid_json(directory):
    recorder = Recorder(directory, Log(), 1, True)
    recorder.step(1, {"train/loss": math.nan, "train/gradient_norm": math.inf})
    recorder.close()
    row = json.loads(directory.metrics.read_text(), parse_constant=pytest.fail)
    assert row["train/loss"] is row["train/gradient_norm"] is None
    assert row["loss_hex"] == "nan"


def test_a_line_cut_short_by_a_kill_costs_only_itself(directory):
    directory.metrics.write_text('{"step": 1}\n{"step": 2, "tra')
    recorder = Recorder(directory, Log(), 2, True, start_step=1)
    recorder.step(2, VALUES)
    recorder.close()
    assert [row["step"] for row in read_lines(directory.metrics)] == [1, 2]


def test_tensorboard_hides_steps_that_are_trained_again(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Board(Log):
        tensorboard = True

    for attempt, start, loss in ((1, 0, 1.0), (2, 2, 5.0)):
        recorder = Recorder(directory, Board(), attempt, True, start_step=start)
        for step in range(start + 1, 5 if attempt == 1 else 4):
            recorder.step(step, {"train/loss": loss})
        recorder.close()
    events = EventAccumulator(str(directory.tensorboard))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 1.0), (2, 1.0), (3, 5.0)]


def test_the_line_reads_as_promised():
    assert progress.line(1200, 50000, VALUES, 9 * 3600 + 12 * 60) == (
        "step 1200/50000 2.4% | loss 2.913 soft_ce 2.41 hard_ce 1.98 cosine 0.11 | teacher 1.80 | lr 4.8e-04 "
        "| 61.2k tok/s | eta 9h12m"
    )
    values = {"train/objective/cosine": 0.01234, "teacher/loss": 1.8, "teacher/entropy": 1.5}
    assert progress.line(5, 10, values) == "step 5/10 50.0% | cosine 0.0123 | teacher 1.80 entropy 1.50"
    assert progress.line(1, 10, {"train/loss": math.nan}) == "step 1/10 10.0% | loss nan"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m00s"), (187, "3m07s"), (33120, "9h12m"), (187200, "2d04h")]
)
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


def test_the_console_gets_one_plain_line_an_interval_and_the_first(directory, capsys):
    log.setup(0)
    recorder = Recorder(directory, Log(), 2, True, total_steps=30, start_step=4)
    for step in range(5, 31):
        recorder.step(step, VALUES)
    recorder.close()
    out = capsys.readouterr().out
    assert [text.split()[1] for text in out.splitlines()] == ["5/30", "10/30", "20/30", "30/30"]
    assert "eta" not in out.splitlines()[0]
    assert "eta 0s" in out.splitlines()[-1]
    assert "\r" not in out
    assert "\x1b" not in out


def test_scores_are_recorded_and_told(directory, capsys):
    log.setup(0)
    with Recorder(directory, Log(), 1, True, total_steps=30) as recorder:
        recorder.scores(7, {"heldout/loss": 2.9131, "heldout/accuracy": 0.4127})
    (row,) = read_lines(directory.metrics)
    assert (row["step"], row["heldout/loss"]) == (7, 2.9131)
    assert capsys.readouterr().out == "held out after step 7 | loss 2.913 accuracy 0.4127\n"


def test_on_a_terminal_a_bar_runs_below_the_lines(directory, capsys, monkeypatch):
    log.setup(0)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    recorder = Recorder(directory, Log(), 1, True, total_steps=10)
    recorder.step(1, VALUES)
    recorder.close()
    out = capsys.readouterr().out
    assert progress.line(1, 10, VALUES) in out, "the terminal breaks lines, so that a copied one is whole"
    assert "training" in out


def test_every_rank_has_its_file_and_only_rank_0_the_console(directory, capsys):
    for rank in (0, 1):
        log.setup(rank, directory.log_file(rank))
        log.get().info("hello from %d", rank)
        log.get().warning("careful")
    log.close()
    assert capsys.readouterr().out == "hello from 0\nwarning: careful\n"
    assert directory.log_file(1).name == "rank-0001.log"
    for rank in (0, 1):
        assert f"INFO hello from {rank}" in directory.log_file(rank).read_text()


def test_without_a_place_to_go_messages_go_nowhere(capsys):
    log.setup(1)
    log.get().warning("careful")
    log.close()
    assert capsys.readouterr() == ("", "")
    assert logging.getLogger("megadistill").handlers == []
