"""Does an attempt that lives on beside its successor leave the run alone?"""

from __future__ import annotations

import pytest

from megadistill.core.errors import StaleAttempt
from megadistill.core.files import write_json
from megadistill.run.directory import RunDirectory
from megadistill.train import stop
from megadistill.train.checkpoints import Checkpoints
from megadistill.train.health import RollBack
from megadistill.train.job import Job


@pytest.fixture
def attempts(tmp_path):
    """Two that have started anew, one after the other, and both live."""
    write_json(tmp_path / "run.json", {"id": "0"})
    (tmp_path / "control").mkdir()
    runs = RunDirectory(tmp_path), RunDirectory(tmp_path)
    for run in runs:
        run.id = "0"
        run.claim()
        run.resumed(None)
    return runs


@pytest.fixture
def overtaken(attempts):
    """The job of the older one, of which no more is there than it needs to find out."""
    job = Job.__new__(Job)
    job.directory = attempts[0]
    return job


def test_it_does_not_roll_back(overtaken):
    with pytest.raises(StaleAttempt):
        overtaken._roll_back(RollBack(5, 8, "4 bad steps", "nonfinite"))
    assert overtaken.directory.events() == []


@pytest.mark.parametrize("name", ["STOP", "ROLLBACK"])
def test_what_is_asked_of_the_run_is_not_its_to_obey(overtaken, name):
    control = overtaken.directory.control
    (control / name).touch()
    with pytest.raises(StaleAttempt):
        overtaken.obey(stop.word(control, is_main=True), step=9)
    assert (control / name).exists()


def test_its_checkpoints_are_nothing_to_go_back_to(attempts):
    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints.directory = attempts[1]
    for name in ("step-00000001-a0001", "step-00000009-a0001", "step-00000005-a0002"):
        (attempts[1].checkpoints / name).mkdir(parents=True)
    assert checkpoints.oldest() == 5
