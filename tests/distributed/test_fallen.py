"""When one rank dies, the others say which, where and what of, and what to do: not that a connection broke."""

import os
import re
import signal
import socket
from pathlib import Path

import pytest

from megadistill.core.dist import World
from megadistill.core.files import read_lines
from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.run.directory import RunDirectory
from megadistill.testing import processes, workspace
from megadistill.train.watchdog import hung_file

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"))
    prepare(load(path).data, lambda line: None)
    return path


def train(config, name, failing):
    return start(config, name, "plugins=[failing_objective]", f"objectives=[{{kind: hard_ce}}, {failing}]")


def start(config, name, *settings):
    command = ["-m", "megadistill", "train", str(config), f"name={name}", "batch.micro_size=8", *settings]
    environ = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])}
    ranks = processes.launch(command, 2, environ)
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    return [rank.returncode for rank in ranks], said, config.parent / "runs" / name


def test_a_rank_that_fails_is_named_with_its_step_its_error_and_its_log(config):
    codes, (said, theirs), run = train(config, "raises", "{kind: failing, at: 3}")
    assert codes == [1, 1]
    log = run / "logs" / "rank-0001.log"
    assert f"rank 1 on {socket.gethostname()} failed in step 3: ValueError: this row is cursed" in said
    assert f"its log: {log}" in said
    assert "the same command goes on from the newest checkpoint" in said
    assert "Traceback" not in said, "the other ranks are quiet"
    assert "ValueError: this row is cursed" in theirs
    assert "failing_objective.py" in log.read_text()
    assert "this row is cursed" in read_lines(run / "journal.jsonl")[-1]["error"]


def test_a_rank_that_fails_before_its_first_step_is_named_too(config):
    opened = RunDirectory.open(load(config, ["name=at-once", "batch.micro_size=8"]), False, World(0, 2, 0))
    hung_file(opened.path, 1, 1).mkdir()  # where the rank wants to write
    codes, (said, _), run = start(config, "at-once")
    assert codes == [1, 1]
    assert f"rank 1 on {socket.gethostname()} failed in the start: IsADirectoryError" in said
    assert "IsADirectoryError" in read_lines(run / "journal.jsonl")[-1]["error"]


def test_a_rank_that_is_killed_leaves_no_word_and_is_told_by_what_it_last_did(config):
    codes, (said, _), _ = train(config, "killed", "{kind: failing, at: 3, kill: true}")
    assert codes == [1, -signal.SIGKILL]
    assert "another rank has left without a word" in said
    assert re.search(r"last heard of: .*rank 1: step \d on ", said)
    assert "Traceback" not in said
