"""A sweep on a real Slurm: one command, an array, a run for each value."""

import json
from pathlib import Path

import pytest
import yaml

from megadistill.testing import processes

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.distributed


def test_seeds_go_out_as_one_array(cluster, config, tmp_path):
    profile = tmp_path / "profile.yaml"
    profile.write_text(yaml.safe_dump({"tasks_per_node": 1, "sbatch": [f"--chdir={ROOT}"]}))
    short = ["name=sweep", "train.steps=2", "schedule.total_steps=2"]
    done = processes.megadistill(
        "submit", config, *short, "--cluster", profile, "--sweep", "seed=5,6", environ=cluster.environ
    )
    assert done.returncode == 0, done.stdout + done.stderr
    job = done.stdout.split()[-1]
    runs = config.parent / "runs"
    for task, seed in enumerate((5, 6)):
        cluster.wait_for(f"{job}_{task}", "COMPLETED", timeout=240)
        run = runs / f"sweep-seed{seed}"
        assert json.loads((run / "STATUS").read_text())["state"] == "done"
        assert yaml.safe_load((run / "config.resolved.yaml").read_text())["seed"] == seed
