"""What the tests of kept answers share."""

import pytest

from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.testing import workspace


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    """A prepared GPT-2 workspace, of which tests take copies."""
    folder = tmp_path_factory.mktemp("causal")
    path = workspace.make(folder, causal=True)
    prepare(load(path).data, lambda line: None)
    return folder
