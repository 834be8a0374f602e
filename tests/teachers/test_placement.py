"""Does a teacher that is spread over the ranks teach what a whole one teaches?"""

from pathlib import Path

import pytest

from megadistill.core.files import read_lines
from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.testing import processes, workspace


@pytest.mark.distributed
@pytest.mark.parametrize("placement", ["sharded", "offloaded"])
def test_a_model_that_is_spread_is_never_whole_on_a_device(placement):
    worker = str(Path(__file__).with_name("spread_worker.py"))
    for output in processes.run([worker, placement], 2):
        assert output.splitlines()[-1] == "moved 0, left 0"


@pytest.mark.distributed
@pytest.mark.parametrize(("placement", "causal"), [("sharded", False), ("offloaded", True)])
def test_losses_are_those_of_a_replicated_teacher(tmp_path, placement, causal):
    config = workspace.make(tmp_path, causal=causal)
    prepare(load(config).data, lambda line: None)
    traces = []
    for where in ("replicated", placement):
        settings = [f"name={where}", f"teacher.placement={where}"]
        settings += ["train.steps=3", "evaluate.rows=16", "log.every_steps=1"]
        processes.run(["-m", "megadistill", "train", str(config), *settings], 2)
        rows = read_lines(tmp_path / "runs" / where / "metrics.jsonl")
        kept = ("step", "loss_hex", "parameter_hash", "teacher/loss", "heldout/agreement_top1")
        traces.append([{name: row[name] for name in kept if name in row} for row in rows])
    assert len(traces[0]) >= 4
    assert traces[1] == traces[0]
