"""A disk that is full before or during a save: a clean end, the last checkpoint intact, and on with more room."""

import subprocess
import sys

import pytest

from megadistill.data.prepare import prepare
from megadistill.engine import checkpoint
from megadistill.run.config import load
from megadistill.testing import workspace
from megadistill.testing.traces import trace

pytestmark = [pytest.mark.soak, pytest.mark.distributed]
MIB = 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and what gives it so many bytes, and room for so many files."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size, files=100_000, how="remount,"):
        command = ["mount", "-t", "tmpfs", "-o", f"{how}size={size},nr_inodes={files}", "megadistill", str(folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    if not resize(64 * MIB, how=""):
        pytest.skip("mounting a file system needs root")
    yield folder, resize
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def used(folder):
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("during", [False, True])
def test_a_full_disk_costs_nothing_but_time(tmp_path, small_disk, during, asynchronous):
    """`during` a save: bytes are there when it begins, but no room for all its files."""
    folder, resize = small_disk
    config = workspace.make(tmp_path)
    prepare(load(config).data, lambda line: None)
    settings = ["checkpoint.every_steps=2", f"checkpoint.asynchronous={asynchronous}", "batch.micro_size=16"]

    def train(name, directory, *more):
        command = [sys.executable, "-m", "megadistill", "train", str(config), f"name={name}", *settings, *more]
        return subprocess.run(
            [*command, f"directory={directory}"], capture_output=True, text=True, check=False, timeout=300
        )

    whole = train("whole", tmp_path)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    first = train("full", folder, "train.steps=4", "schedule.total_steps=12")
    assert first.returncode == 0, first.stdout + first.stderr
    run = folder / "full"
    _, _, newest = checkpoint.committed(run / "checkpoints")[0]
    if during:
        assert resize(64 * MIB, files=1 + sum(1 for _ in folder.rglob("*")) + 9)
    else:
        assert resize(used(folder) + used(newest))
    stopped = train("full", folder)
    assert stopped.returncode == 2, stopped.stdout + stopped.stderr
    assert "disk" in stopped.stderr
    assert "free some space" in stopped.stderr
    assert checkpoint.verify(run / "checkpoints") == []
    assert list((run / "checkpoints").glob(".tmp-*")) == []

    assert resize(64 * MIB)
    done = train("full", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert trace(run) == trace(tmp_path / "whole")
