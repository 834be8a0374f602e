"""One real Slurm for all tests of this folder, where its programs are installed."""

import pytest

from megadistill.testing import slurm


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    if why := slurm.missing():
        pytest.skip(f"no Slurm: {why}")
    with slurm.Cluster(tmp_path_factory.mktemp("slurm"), num_nodes=2, cpus=2) as running:
        yield running
