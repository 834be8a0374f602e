"""A run on two nodes of a real Slurm on this machine is preempted, requeued and resumed; see tools/slurm_demo.sh."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # megadistill.testing is in no wheel's public part

from megadistill.core.files import read_lines
from megadistill.testing import processes, slurm, workspace
from megadistill.testing.traces import trace

ROOT = Path(__file__).resolve().parents[1]
STEPS = 40


def say(text: str) -> None:
    sys.stdout.write(f"\n== {text}\n")
    sys.stdout.flush()


def main() -> None:
    if why := slurm.missing():
        sys.exit(f"no Slurm here: {why}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        config = workspace.make(folder, train={"steps": STEPS, "timeout_seconds": 120})
        subprocess.run([sys.executable, "-m", "megadistill", "prepare", str(config)], check=True)
        say("the same run, undisturbed, in two processes")
        processes.run(["-m", "megadistill", "train", str(config), "name=undisturbed"], 2)
        (folder / "slurm").mkdir()
        with slurm.Cluster(folder / "slurm", num_nodes=2) as cluster:
            demonstrate(cluster, config, folder)


def demonstrate(cluster: slurm.Cluster, config: Path, folder: Path) -> None:
    run, log = config.parent / "runs" / "preempted", folder / "job.out"
    command = ["--nodes", "2", "--ntasks-per-node", "1", "--exclusive", "--output", str(log), "--chdir", str(ROOT)]
    say(f"sbatch {' '.join(command[:5])} slurm/train.sbatch run.yaml name=preempted")
    job = cluster.submit(ROOT / "slurm" / "train.sbatch", str(config), "name=preempted", options=command)
    cluster.wait(lambda: len(trace(run)) >= STEPS // 4, 180)
    sys.stdout.write(cluster.command("squeue"))

    say("a job of a partition that goes first wants the nodes")
    urgent = folder / "urgent.sh"
    urgent.write_text("#!/bin/bash\nsleep 3\n", encoding="utf-8")
    other = cluster.submit(
        urgent, options=["--partition", "urgent", "--nodes", "2", "--exclusive", "--output=/dev/null"]
    )
    cluster.wait(lambda: cluster.job(job)["Restarts"] == "1", 120)
    cluster.wait_for(other, "COMPLETED", timeout=60)
    sys.stdout.write(cluster.command("squeue"))

    say("requeued; the same job goes on when the nodes are free again (here without Slurm's two minutes of delay)")
    cluster.hurry(job)
    cluster.wait_for(job, "COMPLETED", timeout=240)
    sys.stdout.write(log.read_text(encoding="utf-8"))

    say("what the run's journal says")
    for row in read_lines(run / "journal.jsonl"):
        sys.stdout.write(f"{row['time'][11:19]} attempt {row['attempt']} {row['event']:<8} step {row['step']}\n")
    same = trace(run) == trace(config.parent / "runs" / "undisturbed")
    say(f"{STEPS} losses and parameter hashes {'are' if same else 'are NOT'} those of the undisturbed run, bit for bit")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
