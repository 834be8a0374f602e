"""One real Slurm for all tests of this folder, where its programs are installed."""

import pytest

from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.testing import processes, slurm, workspace
from megadistill.testing.traces import trace


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if why := slurm.missing():
        pytest.skip(f"no Slurm: {why}")
    with slurm.Cluster(tmp_path_factory.mktemp("slurm"), num_nodes=4, cpus=2) as running:
        yield running


@pytest.fixture(scope="session")
def config(cluster, tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"), train={"steps": 30, "timeout_seconds": 120})
    prepare(load(path).data, lambda line: None)
    return path


@pytest.fixture(scope="session")
def whole(config):
    """The losses of an uninterrupted run of two processes."""
    processes.run(["-m", "megadistill", "train", str(config), "name=whole"], 2)
    return trace(config.parent / "runs" / "whole")
