"""Do attempts that are killed, or left running behind their successor, ever lose or fork the run?"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

from pydantic import BaseModel

from megadistill.core.dist import World
from megadistill.core.errors import StaleAttempt
from megadistill.engine import checkpoint
from megadistill.run import environment
from megadistill.run.directory import RunDirectory
from megadistill.run.sections import BatchConfig

STALE, BROKEN = 93, 99


class Length(BaseModel):
    steps: int = 10**6


class Schedule(BaseModel):
    total_steps: int | None = None


class Config(BaseModel):
    name: str = "tiny"
    directory: Path
    train: Length = Length()
    schedule: Schedule = Schedule()
    batch: BatchConfig = BatchConfig(global_size=16, micro_size=4)

    @property
    def run_directory(self) -> Path:
        return self.directory / self.name


def attempt(root: Path, told: Path) -> None:
    """Train for ever: the state is the list of who trained each step, saved after every few."""
    run = RunDirectory.open(Config(directory=root), False, World())
    me = run.claim()
    checkpoint.sweep(run.checkpoints, me)
    found = checkpoint.newest(run.checkpoints, run.history(), lambda text: None)
    run.resumed((found.step, found.attempt) if found else None)
    state = json.loads((found.path / "state.json").read_text()) if found else []

    def write(folder: Path) -> None:
        (folder / "state.json").write_text(json.dumps(state))

    while True:
        state += [me] * 3
        checkpoint.save(
            run.checkpoints,
            len(state),
            me,
            partial(partial, write),
            {},
            run.still_ours,
            checkpoint.Keep(2),
            lambda text: None,
            run.history(),
        )
        with open(told, "a") as handle:
            handle.write(f"{me} {len(state)}\n")


def start(root: Path, told: Path) -> int:
    child = os.fork()
    if child == 0:
        code = BROKEN
        try:
            attempt(root, told)
        except StaleAttempt:
            code = STALE
        finally:
            os._exit(code)
    return child


def saves(told: Path) -> list[tuple[int, int]]:
    lines = told.read_text().splitlines() if told.exists() else []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines]


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "nothing happened for 20 s"
        time.sleep(0.002)


def test_a_run_survives_kills_and_stale_attempts(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "describe", lambda size: {"numerics": {}, "code": {}})
    told, chance, overtaken = tmp_path / "told", random.Random(0), []
    run = RunDirectory(tmp_path / "tiny")
    for number in range(1, 16):
        child = start(tmp_path, told)
        # most attempts get to save; some are killed while they start
        saved = chance.random() < 0.8
        if saved:
            wait_for(lambda number=number: any(who == number for who, _ in saves(told)))
        else:
            wait_for((run.attempts / f"{number:06d}.json").exists)
        time.sleep(chance.random() * 0.05)
        if saved and chance.random() < 0.4 and number < 15:
            overtaken.append(child)  # by the next one
            continue
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        commits, history = saves(told), run.history()
        last = max((step for who, step in commits if checkpoint.on_line(history, step, who)), default=0)
        found = checkpoint.newest(run.checkpoints, history, lambda text: None)
        assert (found.step if found else 0) >= last, "a committed checkpoint was lost"
    assert overtaken
    for child in overtaken:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == STALE

    found = checkpoint.newest(run.checkpoints, run.history(), lambda text: None)
    assert found is not None
    state = json.loads((found.path / "state.json").read_text())
    assert len(state) == found.step
    assert state == sorted(state), "an attempt trained on after its successor had"
    history = run.history()
    assert all(checkpoint.on_line(history, step, who) for step, who in enumerate(state, 1))
