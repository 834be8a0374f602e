"""What a cluster does to a job, on a real Slurm: bad nodes, a second job, preemption, time limits, dead nodes."""

import shutil
import signal
from pathlib import Path

import pytest

import megadistill
from megadistill.core.files import read_lines
from megadistill.engine import checkpoint
from megadistill.testing.traces import trace

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "slurm" / "train.sbatch"
pytestmark = [pytest.mark.soak, pytest.mark.distributed]


def submit(cluster, config, log, name, *options, assignments=(), script=SCRIPT):
    """A job of train.sbatch, and the run that it writes."""
    given = ["--output", str(log), "--chdir", str(ROOT), *options]
    return cluster.submit(script, str(config), f"name={name}", *assignments, options=given), (
        config.parent / "runs" / name
    )


def events(run):
    return [(row["event"], row["attempt"]) for row in read_lines(run / "journal.jsonl")]


def test_a_bad_node_is_found_and_left_out(cluster, config, tmp_path):
    """One node of three has older sources of megadistill: the job is requeued and runs on three others."""
    shutil.copytree(Path(megadistill.__file__).parent, tmp_path / "old" / "megadistill")
    (tmp_path / "old" / "megadistill" / "core" / "types.py").open("a").write("# as it was\n")
    prolog = tmp_path / "prolog.sh"
    prolog.write_text(
        "#!/bin/bash\n[[ $SLURMD_NODENAME != node1 ]] || "
        f"printf 'export %s\\n' PYTHONSAFEPATH=1 PYTHONPATH={tmp_path / 'old'}\n",  # before the working directory
        encoding="utf-8",
    )
    prolog.chmod(0o755)
    shape = ["--nodes", "3", "--ntasks-per-node", "1", f"--export=ALL,MEGADISTILL_SRUN=--task-prolog={prolog}"]
    sizes = ["batch.global_size=24", "train.steps=4"]
    job, run = submit(cluster, config, tmp_path / "log", "excluded", *shape, assignments=sizes)
    cluster.wait(lambda: cluster.job(job).get("ExcNodeList") == "node1", 120)
    cluster.hurry(job)
    found = cluster.wait_for(job, "COMPLETED", timeout=180)
    assert found["NodeList"] == "node[0,2-3]"
    log = (tmp_path / "log").read_text()
    assert "X node1: megadistill sources:" in log
    assert "fit to train" in log
    assert events(run)[-1] == ("end", 1)


def test_two_jobs_of_one_run_cannot_both_write(cluster, config, tmp_path):
    shape = ["--ntasks", "2", "--nodes", "1"]
    longer = ["train.steps=1000", "schedule.total_steps=1000"]  # the second comes through its preflight meanwhile
    job, run = submit(cluster, config, tmp_path / "log", "array", *shape, assignments=longer)
    cluster.wait(lambda: len(trace(run)) >= 3, 120)
    second, _ = submit(cluster, config, tmp_path / "second", "array", *shape, assignments=longer)
    found = cluster.wait_for(second, "FAILED", timeout=90)
    assert (found["ExitCode"], found["Restarts"]) == ("2:0", "0")
    assert f"Slurm job {job}" in (tmp_path / "second").read_text()
    (run / "control" / "STOP").touch()
    cluster.wait(lambda: cluster.job(job)["Restarts"] == "1", 120)
    cluster.cancel(job)
    assert {attempt for _, attempt in events(run)} == {1}
    steps = sorted(trace(run))
    assert steps == list(range(1, len(steps) + 1))


def test_a_preempted_job_saves_in_its_grace_time_and_goes_on(cluster, config, whole, tmp_path):
    shape = ["--nodes", "2", "--ntasks-per-node", "1", "--exclusive"]
    job, run = submit(cluster, config, tmp_path / "log", "preempted", *shape)
    cluster.wait(lambda: len(trace(run)) >= 5, 120)
    urgent = tmp_path / "urgent.sh"
    urgent.write_text("#!/bin/bash\nsleep 5\n", encoding="utf-8")
    other = cluster.submit(
        urgent, options=["--partition", "urgent", "--nodes", "4", "--exclusive", "--output=/dev/null"]
    )
    cluster.wait(lambda: cluster.job(job)["Restarts"] == "1", 120)
    assert [event for event, _ in events(run)][-1] == "signal", (tmp_path / "log").read_text()
    cluster.wait_for(other, "COMPLETED", timeout=60)
    cluster.hurry(job)
    cluster.wait_for(job, "COMPLETED", timeout=180)
    assert trace(run) == whole
    assert checkpoint.verify(run / "checkpoints") == []


def test_a_time_limit_is_an_interruption_like_any_other(cluster, config, whole, tmp_path):
    """The warning comes 100 s before the end of a job of two minutes, so soon after its start."""
    shape = ["--nodes", "2", "--ntasks-per-node", "1", "--time", "2", "--signal", "B:USR1@100"]
    slow = ["train.steps=1500", "schedule.total_steps=30", "checkpoint.every_steps=50"]
    job, run = submit(cluster, config, tmp_path / "log", "limited", *shape, assignments=slow)
    cluster.wait(lambda: cluster.job(job)["Restarts"] == "1" or cluster.job(job)["JobState"] == "COMPLETED", 180)
    assert cluster.job(job)["Restarts"] == "1", (tmp_path / "log").read_text()
    while cluster.job(job)["JobState"] != "COMPLETED":
        if cluster.job(job)["JobState"] == "PENDING":
            cluster.command("scontrol", "update", f"JobId={job}", "TimeLimit=10")
            cluster.hurry(job)
        cluster.wait(lambda: cluster.job(job)["JobState"] in ("COMPLETED", "PENDING"), 400)
    found = trace(run)
    assert sorted(found) == list(range(1, 1501))
    assert {step: found[step] for step in whole} == whole


def test_what_a_dead_node_still_does_is_fenced_off(cluster, config, whole, tmp_path):
    """The node's daemon dies, its ranks live on; Slurm restarts the job elsewhere. Only one of them may commit."""
    shape = ["--nodes", "1", "--ntasks", "2"]
    longer = ["train.steps=4000", "schedule.total_steps=4000", "checkpoint.every_steps=20"]
    job, run = submit(cluster, config, tmp_path / "log", "fenced", *shape, assignments=longer)
    cluster.wait(lambda: len(trace(run)) >= 25, 120)
    node = cluster.job(job)["NodeList"]
    cluster.kill_node(node)
    cluster.wait(lambda: cluster.job(job)["JobState"] == "PENDING", 180)
    cluster.hurry(job)
    cluster.wait(lambda: ("resume", 2) in events(run), 180)
    before = max(step for step, _, _ in checkpoint.committed(run / "checkpoints"))
    cluster.wait(lambda: max(step for step, _, _ in checkpoint.committed(run / "checkpoints")) > before + 40, 240)
    late = [(step, attempt) for step, attempt, _ in checkpoint.committed(run / "checkpoints") if step > before + 40]
    assert late
    assert {attempt for _, attempt in late} == {2}
    cluster.command("scancel", f"--signal={signal.SIGKILL.value}", "--full", job, check=False)
    cluster.cancel(job)
    cluster.start_node(node)
    cluster.wait(lambda: cluster.command("sinfo", "-hN", "-o", "%t").split().count("idle") >= 8, 120)
