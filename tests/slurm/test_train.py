"""Ranks that a real Slurm starts: one command, stopped by a signal, requeued, and the same numbers bit for bit."""

import json
from pathlib import Path

import pytest

from megadistill.core.files import read_lines
from megadistill.testing.traces import trace

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.distributed


def test_srun_starts_the_ranks_and_gives_their_exit_code(cluster, config, whole):
    command = ["srun", "--ntasks", "2", "--chdir", str(ROOT), "bash", "launch/node.sh", str(config)]
    cluster.command(*command, "name=srun")
    assert trace(config.parent / "runs" / "srun") == whole
    refused = cluster.command(*command, "name=srun", "batch.global_size=3", check=False)
    assert "batch.global_size: 3 does not divide" in refused
    assert "task 0: Exited with exit code 2" in refused


def test_a_job_is_stopped_by_a_signal_requeued_and_goes_on_bit_for_bit(cluster, config, whole, tmp_path):
    run = config.parent / "runs" / "requeued"
    options = ["--nodes", "2", "--ntasks-per-node", "1", "--output", str(tmp_path / "log"), "--chdir", str(ROOT)]
    job = cluster.submit(ROOT / "slurm" / "train.sbatch", str(config), "name=requeued", options=options)
    cluster.wait(lambda: len(trace(run)) >= 8, 120)
    cluster.command("scancel", "--signal=USR1", "--batch", job)
    found = cluster.wait_for(job, "PENDING", timeout=90)
    assert found["Restarts"] == "1", (tmp_path / "log").read_text()
    stopped = json.loads((run / "STATUS").read_text())
    assert (stopped["state"], stopped["reason"]) == ("stopped", "SIGUSR1")

    cluster.hurry(job)
    cluster.wait_for(job, "COMPLETED", timeout=240)
    events = [(row["event"], row["step"]) for row in read_lines(run / "journal.jsonl")]
    assert ("resume", stopped["step"]) in events
    assert trace(run) == whole
    assert len(list((run / "attempts").iterdir())) == 2


def test_a_mistake_is_not_requeued(cluster, config, tmp_path):
    options = ["--ntasks", "1", "--output", str(tmp_path / "log"), "--chdir", str(ROOT)]
    job = cluster.submit(ROOT / "slurm" / "train.sbatch", str(config), "train.stepz=3", options=options)
    found = cluster.wait_for(job, "FAILED", timeout=60)
    assert (found["ExitCode"], found["Restarts"]) == ("2:0", "0")
    assert "did you mean 'steps'?" in (tmp_path / "log").read_text()
