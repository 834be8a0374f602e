"""Does a checkpoint exist only when it is whole, and is only a good one of this run's history ever loaded?"""

from __future__ import annotations

import os
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from megadistill.core import files
from megadistill.core.errors import StaleAttempt, UserError
from megadistill.core.together import RankFailed
from megadistill.engine import checkpoint

KEEP = checkpoint.Keep()
Usage = namedtuple("Usage", "total used free")


def write(folder: Path) -> None:
    (folder / "deepspeed").mkdir()
    (folder / "deepspeed" / "weights.pt").write_bytes(b"w" * 1000)
    (folder / "trainer.json").write_text("{}")


def ours() -> None:
    pass


def save(
    root: Path,
    step: int,
    attempt: int = 1,
    write: Callable[[Path], None] = write,
    keep=KEEP,
    facts=None,
    **options,
) -> Path:
    settings = {"still_ours": ours, "log": lambda text: None, "keep": keep, **options}
    return checkpoint.save(root, step, attempt, partial(partial, write), facts or {"rows": step * 8}, **settings)


def newest(root: Path, history: checkpoint.History | None = None) -> tuple[str | None, list[str]]:
    lines: list[str] = []
    found = checkpoint.newest(root, history or {}, lines.append)
    return (found.path.name if found else None), lines


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_a_saved_checkpoint_is_found_with_its_facts(tmp_path):
    path = save(tmp_path, 1000, attempt=7)
    found = checkpoint.newest(tmp_path, {}, pytest.fail)
    assert path.name == "step-00001000-a0007"
    assert found is not None
    assert (found.path, found.step, found.attempt) == (path, 1000, 7)
    assert found.manifest["facts"] == {"rows": 8000}
    assert found.manifest["complete"] is True
    assert found.manifest["files"]["deepspeed/weights.pt"]["bytes"] == 1000
    assert checkpoint.verify(tmp_path) == []


def test_no_checkpoint_at_all_is_no_error(tmp_path):
    assert newest(tmp_path / "missing") == (None, [])
    assert newest(tmp_path) == (None, [])


def test_saving_a_step_again_keeps_what_is_there(tmp_path):
    save(tmp_path, 10)
    assert save(tmp_path, 10, write=lambda folder: pytest.fail("written twice")).name == "step-00000010-a0001"


# ---------------------------------------------------------------------------------- kills


def kill_before(module, name: str, at: Callable[[tuple], bool]) -> Callable[[], None]:
    def arm() -> None:
        real = getattr(module, name)

        def replacement(*args, **kwargs):
            if at(args):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(module, name, replacement)

    return arm


def kill_after(module, name: str, at: Callable[[tuple], bool]) -> Callable[[], None]:
    def arm() -> None:
        real = getattr(module, name)

        def replacement(*args, **kwargs):
            result = real(*args, **kwargs)
            if at(args):
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(module, name, replacement)

    return arm


def of_new(args: tuple) -> bool:
    return args[0].name == ".tmp-step-00000030-a0001"


def of_trash(args: tuple) -> bool:
    return args[0].name.startswith(".trash")


KILLS = {
    "folder made": (kill_after(Path, "mkdir", of_new), 20),
    "before the files": (kill_before(checkpoint, "_write", lambda a: True), 20),
    "half the files": (kill_before(Path, "write_text", lambda a: a[0].name == "trainer.json"), 20),
    "before hashing": (kill_before(checkpoint, "_seal", lambda a: True), 20),
    "between two hashes": (kill_after(checkpoint, "_seal", lambda a: True), 20),
    "before the manifest": (kill_before(checkpoint, "write_json", lambda a: True), 20),
    "inside the manifest": (kill_before(files.os, "replace", lambda a: True), 20),
    "before the rename": (kill_before(os, "rename", of_new), 20),
    "after the rename": (kill_after(os, "rename", of_new), 30),
    "before retention": (kill_before(checkpoint, "_retain", lambda a: True), 30),
    "victim renamed": (kill_before(shutil, "rmtree", of_trash), 30),
    "victim deleted": (kill_after(shutil, "rmtree", of_trash), 30),
}


@pytest.mark.parametrize("point", KILLS)
def test_a_kill_at_any_point_leaves_a_whole_checkpoint(tmp_path, point):
    save(tmp_path, 10)
    save(tmp_path, 20)
    arm, expected = KILLS[point]
    child = os.fork()
    if child == 0:
        try:
            arm()
            save(tmp_path, 30)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert newest(tmp_path) == (f"step-{expected:08d}-a0001", [])
    assert checkpoint.verify(tmp_path) == []
    checkpoint.sweep(tmp_path)
    assert all(name.startswith("step-") for name in names(tmp_path))
    save(tmp_path, 40, attempt=2)
    assert newest(tmp_path) == ("step-00000040-a0002", [])


def test_sweep_leaves_what_a_newer_attempt_is_writing(tmp_path):
    for name in (".tmp-step-00000010-a0002", ".tmp-step-00000010-a0003", ".trash-step-00000001-a0001"):
        (tmp_path / name).mkdir()
    checkpoint.sweep(tmp_path, attempt=3)
    assert names(tmp_path) == [".tmp-step-00000010-a0003"]


# ---------------------------------------------------------------------------------- damage


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "flipped byte": ("deepspeed/weights.pt", flip, "weights.pt does not have the sha256"),
    "truncated file": (
        "deepspeed/weights.pt",
        lambda p: os.truncate(p, 7),
        "has 7 bytes, the manifest says 1000",
    ),
    "missing file": ("trainer.json", Path.unlink, "trainer.json is missing"),
    "missing manifest": ("MANIFEST.json", Path.unlink, "MANIFEST.json is missing"),
    "empty manifest": ("MANIFEST.json", lambda p: p.write_text(""), "MANIFEST.json cannot be read"),
    "wrong fact": (
        "MANIFEST.json",
        lambda p: p.write_text(p.read_text().replace("160", "161")),
        "that it states",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_previous_checkpoint_taken(tmp_path, kind):
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    file, damage, message = DAMAGE[kind]
    damage(path / file)
    name, lines = newest(tmp_path)
    assert name == "step-00000010-a0001"
    assert len(lines) == 1
    assert "step-00000020-a0001" in lines[0]
    assert message in lines[0]
    assert [message in problem for problem in checkpoint.verify(tmp_path)] == [True]


def test_no_good_checkpoint_is_an_error_not_a_start_from_zero(tmp_path):
    for step in (10, 20):
        flip(save(tmp_path, step) / "deepspeed" / "weights.pt")
    with pytest.raises(UserError) as caught:
        newest(tmp_path)
    assert "step-00000010-a0001" in str(caught.value)
    assert "step-00000020-a0001" in str(caught.value)
    assert "--fresh" in caught.value.fix


def test_a_checkpoint_renamed_by_hand_is_refused(tmp_path):
    save(tmp_path, 10)
    shutil.copytree(tmp_path / "step-00000010-a0001", tmp_path / "step-00000090-a0001")
    name, lines = newest(tmp_path)
    assert name == "step-00000010-a0001"
    assert "is that of step-00000010-a0001" in lines[0]


# ---------------------------------------------------------------------------------- the fence


def test_a_stale_attempt_cannot_commit(tmp_path):
    save(tmp_path, 10)
    calls = []

    def stale_at_commit() -> None:
        calls.append(1)
        if len(calls) > 1:  # the claim was still ours when the save began
            raise StaleAttempt("attempt 2 has claimed the run")

    with pytest.raises(StaleAttempt):
        save(tmp_path, 20, still_ours=stale_at_commit)
    assert names(tmp_path) == ["step-00000010-a0001"]


def test_a_newer_attempt_that_swept_our_folder_away_is_the_reason_given(tmp_path):
    stale = []

    def still_ours() -> None:
        if stale:
            raise StaleAttempt("attempt 2 has claimed the run")

    def swept(folder: Path) -> None:
        shutil.rmtree(folder)
        stale.append(1)
        write(folder)

    with pytest.raises(StaleAttempt):
        save(tmp_path, 20, write=swept, still_ours=still_ours)


def test_a_stale_attempt_deletes_nothing(tmp_path):
    save(tmp_path, 10)
    save(tmp_path, 20)
    calls = []

    def claimed_right_after_the_check() -> None:
        calls.append(1)
        if len(calls) > 2:
            raise StaleAttempt("attempt 2 has claimed the run")

    with pytest.raises(StaleAttempt):
        save(tmp_path, 30, still_ours=claimed_right_after_the_check)
    assert names(tmp_path) == ["step-00000010-a0001", "step-00000020-a0001", "step-00000030-a0001"]
    assert newest(tmp_path, {1: None, 2: (20, 1)})[0] == "step-00000020-a0001"


def test_what_a_stale_attempt_committed_is_never_loaded_nor_counted_by_retention(tmp_path):
    for step in (10, 20, 30, 40):
        save(tmp_path, step, attempt=1, keep=checkpoint.Keep(9))
    history = {1: None, 2: (20, 1)}  # attempt 2 resumed from 20 before attempt 1 committed 30 and 40
    name, lines = newest(tmp_path, history)
    assert name == "step-00000020-a0001"
    assert len(lines) == 2
    save(tmp_path, 25, attempt=2, history=history)
    assert names(tmp_path) == ["step-00000020-a0001", "step-00000025-a0002"]


def test_only_stale_checkpoints_mean_a_start_from_nothing(tmp_path):
    save(tmp_path, 10, attempt=1)
    assert newest(tmp_path, {1: None, 2: None})[0] is None


@pytest.mark.parametrize(
    ("history", "on_line"),
    [
        ({}, "1@10 1@20 2@20 2@30 3@30"),
        ({1: None}, "1@10 1@20 2@20 2@30 3@30"),
        ({1: None, 2: (20, 1)}, "1@10 1@20 2@20 2@30 3@30"),
        ({1: None, 2: (10, 1)}, "1@10 2@20 2@30 3@30"),
        ({1: None, 2: (20, 1), 3: (10, 1)}, "1@10 3@30"),  # 2@20, 2@30 were damaged, or 2 was never live
        ({1: None, 2: (10, 1), 3: (20, 2)}, "1@10 2@20 3@30"),
        ({1: None, 2: None, 3: None}, "3@30"),
        ({1: (9, 1), 2: (10, 2)}, "2@20 2@30 3@30"),  # nonsense ends, and trusts nothing further back
    ],
)
def test_the_line_of_history(history, on_line):
    everything = [(1, 10), (1, 20), (2, 20), (2, 30), (3, 30)]
    assert [f"{a}@{s}" for a, s in everything if checkpoint.on_line(history, s, a)] == on_line.split()


def test_of_two_commits_of_one_step_the_later_attempt_wins(tmp_path):
    save(tmp_path, 20, attempt=1)
    save(tmp_path, 20, attempt=2)
    assert newest(tmp_path)[0] == "step-00000020-a0002"


# ---------------------------------------------------------------------------------- retention and space


def test_retention_keeps_the_newest_and_the_multiples(tmp_path):
    for step in range(10, 100, 10):
        save(tmp_path, step, keep=checkpoint.Keep(2, every_steps=40))
    assert names(tmp_path) == [f"step-{step:08d}-a0001" for step in (40, 80, 90)]


def test_retention_keeps_the_best_of_those_that_were_scored(tmp_path):
    for step, loss in enumerate([3.0, 1.5, None, 2.0, 1.7], 1):
        save(tmp_path, step, keep=checkpoint.Keep(2, best=True), facts={"heldout_loss": loss})
    assert names(tmp_path) == [f"step-{step:08d}-a0001" for step in (2, 4, 5)]


def test_only_what_was_before_a_rollback_is_found(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, keep=checkpoint.Keep(9))
    found = checkpoint.newest(tmp_path, {}, lambda text: None, before=20)
    assert found is not None
    assert found.step == 10


def test_a_run_that_cannot_go_back_so_far_does_not_start_from_zero(tmp_path):
    for step in (10, 20, 30):
        save(tmp_path, step, attempt=2, keep=checkpoint.Keep(9))
    save(tmp_path, 5, attempt=1, keep=checkpoint.Keep(9))
    history = {1: None, 2: None}
    with pytest.raises(UserError) as caught:
        checkpoint.newest(tmp_path, history, lambda text: None, before=10)
    assert "step-00000010-a0002" in caught.value.why
    assert "a0001" not in caught.value.why, "it is of no use, and not undone either"
    assert "--fresh" in caught.value.fix
    assert checkpoint.newest(tmp_path, history, lambda text: None, before=1) is None, "back to the beginning"
    assert checkpoint.newest(tmp_path / "none", history, lambda text: None, before=10) is None


def test_a_victim_that_cannot_be_deleted_does_not_fail_the_save(tmp_path, monkeypatch):
    lines: list[str] = []
    save(tmp_path, 10)
    save(tmp_path, 20)

    def busy(path, ignore_errors=False):
        if not ignore_errors:
            raise OSError("Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        save(tmp_path, 30, log=lines.append)
    assert "could not delete old checkpoint step-00000010-a0001" in lines[0]
    assert newest(tmp_path) == ("step-00000030-a0001", [])


def test_a_full_disk_is_told_before_anything_is_touched(tmp_path, monkeypatch):
    save(tmp_path, 10)
    before = names(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9 - 1100, 1100))
    with pytest.raises(UserError) as caught:
        save(tmp_path, 20, write=lambda folder: pytest.fail("written"))
    assert "free" in caught.value.why
    assert "needed" in caught.value.why
    assert names(tmp_path) == before


def test_a_disk_that_fills_up_midway_leaves_no_trace(tmp_path):
    def fills_up(folder: Path) -> None:
        write(folder)
        raise OSError(28, "No space left on device")

    save(tmp_path, 10)
    with pytest.raises(UserError, match="the disk filled up"):
        save(tmp_path, 20, write=fills_up)
    assert names(tmp_path) == ["step-00000010-a0001"]


def test_facts_that_are_not_json_fail_before_the_commit(tmp_path):
    with pytest.raises(RankFailed):
        save(tmp_path, 1, facts={"path": Path("x")})
    assert names(tmp_path) == []
