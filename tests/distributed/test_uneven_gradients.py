"""Ranks that would train different parameters are refused at the first step, on all ranks, without a hang."""

from pathlib import Path

import pytest

from megadistill.testing.processes import run

WORKER = str(Path(__file__).with_name("uneven_worker.py"))
pytestmark = pytest.mark.distributed


def test_uneven_ranks_are_refused_by_name():
    for output in run([WORKER, "uneven"], 2):
        assert "refused: step 1, micro-batch 0: ranks would train different parameters" in output
        assert "learned.uneven.first.weight" in output


def test_even_ranks_are_not():
    assert all("trained" in output for output in run([WORKER, "even"], 2))
