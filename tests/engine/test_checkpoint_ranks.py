"""Do the ranks of a run save, fail and find damage together?"""

import json
from pathlib import Path

import pytest

from megadistill.testing import processes

WORKER = str(Path(__file__).with_name("checkpoint_worker.py"))


@pytest.mark.distributed
@pytest.mark.parametrize("when", ["at once", "asynchronous"])
def test_two_ranks_save_together_fail_together_and_find_damage_together(tmp_path, when):
    outputs = processes.run([WORKER, str(tmp_path), when], 2, timeout=60)
    told = [json.loads(output.splitlines()[-1]) for output in outputs]
    for answer in told:
        assert answer["saved"] == "step-00000010-a0001"
        assert answer["files"] == ["rank-0.bin", "rank-1.bin"]
        assert answer["failure"] == ["RankFailed", True]
        assert answer["stale"] == "StaleAttempt"
        assert answer["newest"] == "step-00000010-a0001"
        assert "rank-1.bin does not have the sha256" in answer["log"][0]
    assert [answer["cause"] for answer in told] == ["NoneType", "ValueError"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010-a0001", "step-00000040-a0001"]
