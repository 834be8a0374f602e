"""P6: a hung rank ends the run within the stated time, with the stacks of all ranks, and the run goes on afterwards."""

import os
import time
from pathlib import Path

import pytest

from megadistill.core.files import read_lines
from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.testing import processes, workspace


@pytest.mark.distributed
def test_a_rank_that_hangs_with_the_lock_held_ends_all(tmp_path):
    path = workspace.make(tmp_path)
    prepare(load(path).data, lambda line: None)
    run = tmp_path / "runs" / "tiny"
    hangs = "objectives=[{kind: hard_ce}, {kind: hanging, after: 9}]"
    command = ["-m", "megadistill", "train", str(path), "plugins=[hanging_objective]", hangs, "batch.micro_size=8"]
    command += ["train.hang_seconds=4", "checkpoint.every_steps=4"]
    environ = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])}
    ranks = processes.launch(command, 2, environ)
    while not (run / "checkpoints").exists() or not list((run / "checkpoints").glob("step-00000008-*")):
        assert ranks[0].poll() is None, ranks[0].communicate()[0]
        time.sleep(0.1)
    hung = time.monotonic()
    codes = [rank.wait(timeout=60) for rank in ranks]
    assert time.monotonic() - hung < 25, "4 seconds, and some to come to the step that hangs"
    assert codes[1] == 1
    assert codes[0] != 0
    assert "hanging_objective.py" in next(run.glob("logs/hung-a0001-rank-0001.txt")).read_text()
    told = ranks[0].communicate()[0] + "".join(file.read_text() for file in run.glob("logs/*rank-0000*"))
    assert "Traceback" in told or "most recent call first" in told
    ranks[1].communicate()

    again = processes.launch([*command, "train.steps=9", "schedule.total_steps=12"], 2, environ)
    outputs = [rank.communicate(timeout=120)[0] for rank in again]
    assert [rank.returncode for rank in again] == [0, 0], outputs
    events = {row["event"]: row for row in read_lines(run / "journal.jsonl")}
    assert events["hang"]["ranks"][-1] == 1
    assert all(" on " in events["hang"]["heard"][rank] for rank in ("0", "1")), "what each rank did, and where"
    assert events["resume"]["step"] == 8
