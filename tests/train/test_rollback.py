"""Is a run that somebody asks to go back left with a checkpoint that it can go on from?"""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from megadistill.core.files import write_json
from megadistill.engine import checkpoint
from megadistill.engine.publisher import Publisher
from megadistill.run.directory import RunDirectory
from megadistill.train import stop
from megadistill.train.checkpoints import Checkpoints
from megadistill.train.health import RollBack, undone_from
from megadistill.train.job import Job


@pytest.fixture
def directory(tmp_path):
    write_json(tmp_path / "run.json", {"id": "0"})
    run = RunDirectory(tmp_path)
    run.control.mkdir()
    run.id = "0"
    run.claim()
    run.resumed(None)
    run.journal("start", step=0)
    return run


@pytest.fixture
def job(directory):
    """As it is before step 310: it keeps two checkpoints, has 100 and 200, and 300 is on its way to the disk."""
    publisher = Publisher(True, 60)

    def save(step, write):
        def snapshot(folder):
            return lambda: write(folder)

        arguments = (snapshot, {}, directory.still_ours, checkpoint.Keep(2), print, directory.history(), publisher)
        checkpoint.save(directory.checkpoints, step, 1, *arguments)

    def slowly(folder):
        time.sleep(1)
        (folder / "weights").touch()

    save(100, lambda folder: (folder / "weights").touch())
    save(200, lambda folder: (folder / "weights").touch())
    save(300, slowly)
    checkpoints = Checkpoints.__new__(Checkpoints)
    checkpoints.publisher, checkpoints.directory, checkpoints.last_saved = publisher, directory, 300
    job = Job.__new__(Job)
    job.directory, job.checkpoints = directory, checkpoints
    job.parts = SimpleNamespace(stream=SimpleNamespace(window=lambda first, last: (first, last)))
    return job


def newest(directory):
    undone = undone_from(directory.events())
    return checkpoint.newest(directory.checkpoints, directory.history(), print, undone).step


def test_a_save_under_way_does_not_take_away_what_the_run_goes_back_to(job, directory):
    (directory.control / "ROLLBACK").write_text("150\n")
    assert job.obey(stop.ROLLBACK, 310) is None, "100 goes when 300 comes, and 150 lies before 200"
    assert not (directory.control / "ROLLBACK").exists()
    assert newest(directory) == 300


def test_the_run_goes_back_to_before_the_step_that_was_asked_for(job, directory):
    (directory.control / "ROLLBACK").write_text("250\n")
    with pytest.raises(RollBack, match="steps 250 to 309"):
        job.obey(stop.ROLLBACK, 310)
    assert newest(directory) == 200
