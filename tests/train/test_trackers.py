"""Numbers in services that people watch: there after a resume too, and training goes on where a service fails."""

import time
from pathlib import Path

import pytest

from megadistill.core import log
from megadistill.run.directory import RunDirectory
from megadistill.testing import processes, workspace
from megadistill.train.record import Recorder


class Log:
    every_steps = 10
    tensorboard = False
    project = "distilled"

    def __init__(self, *services):
        self.services = services


@pytest.fixture
def directory(tmp_path):
    found = RunDirectory(tmp_path / "mine")
    found.path.mkdir()
    found.id = "0123456789abcdef"
    yield found
    log.close()


def record(directory, service, attempt, first, losses):
    with Recorder(directory, Log(service), attempt, True, start_step=first - 1) as recorder:
        for step, loss in enumerate(losses, first):
            recorder.step(step, {"train/loss": loss})


def test_trackio_has_one_run_of_all_attempts(directory, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # before it is imported, here for the first time
    record(directory, "trackio", 1, 1, [3.0, 2.0, 1.5])
    record(directory, "trackio", 2, 3, [1.5, 1.25])
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = SQLiteStorage.get_runs("distilled")
    found = [(row["step"], row["train/loss"]) for row in SQLiteStorage.get_logs("distilled", run)]
    assert found == [(1, 3.0), (2, 2.0), (3, 1.5), (3, 1.5), (4, 1.25)]


def test_wandb_keeps_what_it_cannot_send_in_the_run_directory(directory, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    record(directory, "wandb", 1, 1, [3.0])
    record(directory, "wandb", 2, 2, [2.0])
    files = list((directory.path / "wandb").rglob(f"run-{directory.id}.wandb"))
    assert len(files) == 2
    given_up = time.monotonic() + 30  # a process of wandb's own writes them
    while not (kept := all(b"train/loss" in file.read_bytes() for file in files)) and time.monotonic() < given_up:
        time.sleep(0.1)
    assert kept, [file.read_bytes() for file in files]


def test_a_service_that_refuses_is_told_once_and_training_goes_on(directory, tmp_path):
    """wandb without a key, in a process of its own: it keeps the settings of the first run of a process."""
    script = (
        "from tests.train.test_trackers import Log, RunDirectory, log, record\n"
        "from pathlib import Path\n"
        f"directory = RunDirectory(Path({str(directory.path)!r}))\n"
        f"directory.id = {directory.id!r}\n"
        "log.setup(0)\n"
        "record(directory, 'wandb', 1, 1, [3.0, 2.0])\n"
    )
    environ = {"WANDB_MODE": "online", "HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = processes.finish(["-c", script], environ, cold=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wandb gets no numbers") == 1
    assert len(directory.metrics.read_text().splitlines()) == 2


def test_a_service_that_is_not_installed_is_told_at_once(tmp_path):
    config = workspace.make(tmp_path)
    hidden = tmp_path / "hidden"  # a package that cannot be found, before the one that can
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as u\n"
        "find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'trackio' else find(name, *more)\n"
    )
    done = processes.finish(
        ["-m", "megadistill", "validate", str(config), "log.services=[trackio]"],
        {"PYTHONPATH": str(hidden)},
        cold=True,
    )
    assert done.returncode == 2
    assert "log.services" in done.stderr
    assert "pip install megadistill[trackio]" in done.stderr
