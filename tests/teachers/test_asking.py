"""Answers are made once, by any number of processes and after any kill, and made again where they are damaged."""

import contextlib
import threading

import pytest
import torch
import yaml
from typer.testing import CliRunner

from megadistill.cli import app
from megadistill.core.errors import UserError
from megadistill.run.config import load
from megadistill.teachers import asking
from megadistill.teachers.answers import block_files, read_index, write_index
from megadistill.testing.kept_answers import cached, files, spoil

CPU = torch.device("cpu")


def test_shares_and_a_kill_end_with_the_same_bytes(causal, tmp_path, monkeypatch):
    monkeypatch.setattr("megadistill.teachers.asking.BLOCK_ROWS", 64)
    data = load(causal / "run.yaml").data
    whole, shared = (cached(causal, dir=str(tmp_path / name)) for name in ("whole", "shared"))
    whole.prepare(data, 0, lambda line: None, (0, 1))
    said = []
    assert shared.prepare(data, 0, said.append, (1, 2)) is False
    assert "other shares have them" in said[-1]
    making = next(tmp_path.glob(".shared.*.making"))
    next(making.glob("*.rows.npy")).unlink()  # as a kill between its two files leaves a block
    assert shared.prepare(data, 0, said.append, (1, 2)) is False
    assert shared.prepare(data, 0, said.append, (0, 2)) is True
    assert files(tmp_path / "whole") == files(tmp_path / "shared")
    assert shared.prepare(data, 0, said.append, (0, 1)) is True
    assert "made already and sound" in said[-1]


def test_of_shares_that_see_all_blocks_there_at_once_one_finishes(causal, tmp_path, monkeypatch):
    data = load(causal / "run.yaml").data
    teacher = cached(causal, dir=str(tmp_path / "answers"))
    teacher.prepare(data, 0, lambda line: None, (0, 1))
    before = files(teacher.dir)
    key = read_index(teacher.dir).facts["key"]
    (teacher.dir / "index.json").unlink()
    teacher.dir.rename(tmp_path / f".answers.{key[:16]}.making")
    write, met = asking.write_index, threading.Barrier(2)

    def slowly(*arguments):
        index = write(*arguments)
        with contextlib.suppress(threading.BrokenBarrierError):
            met.wait(timeout=2)
        return index

    monkeypatch.setattr(asking, "write_index", slowly)
    ended = {}

    def share(number):
        ended[number] = teacher.prepare(data, 0, lambda line: None, (number, 2))

    threads = [threading.Thread(target=share, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(ended) == {0, 1}
    assert any(ended.values())
    assert files(teacher.dir) == before


def test_what_is_next_is_said_only_when_all_answers_are_there(causal, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "BLOCK_ROWS", 64)
    fields = yaml.safe_load((causal / "run.yaml").read_text())
    fields["teacher"] = cached(causal, dir=str(tmp_path / "answers")).model_dump(mode="json")
    fields["objectives"] = [{"kind": "soft_ce"}]
    fields["data"]["dir"] = str(tmp_path / "prepared")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(fields))

    def last_line(share):
        done = CliRunner().invoke(app, ["prepare", str(path), "--workers", "1", "--share", share])
        assert done.exit_code == 0, done.output
        return done.output.splitlines()[-1]

    told = [last_line(share) for share in ("1/2", "0/2", "1/2", "0/2")]
    assert [line.split(":")[0] for line in told] == ["still to do", "still to do", "next", "next"]


def test_more_entries_than_there_are_cannot_be_kept(causal):
    with pytest.raises(UserError, match=r"teacher\.keep\.entries: 301 of a vocabulary of 300"):
        cached(causal, keep={"entries": 301}).prepare(load(causal / "run.yaml").data, 0, print, (0, 1))


def test_who_is_asked_proves_itself_first(causal, tmp_path):
    """Random weights are worse than word frequencies."""
    of = {"kind": "online", "path": str(causal / "teacher")}
    with pytest.raises(UserError, match="the teacher must not teach"):
        cached(causal, dir=str(tmp_path / "answers"), of=of).prepare(load(causal / "run.yaml").data, 0, print, (0, 1))
    assert not (tmp_path / "answers").exists()


def test_a_folder_of_something_else_is_not_replaced(causal, tmp_path):
    (tmp_path / "notes").mkdir()
    with pytest.raises(UserError, match="was not made by prepare"):
        cached(causal, dir=str(tmp_path / "notes")).prepare(load(causal / "run.yaml").data, 0, print, (0, 1))


@pytest.mark.parametrize("share", [(0, 1), (1, 2)])
def test_prepare_makes_damaged_blocks_again_and_no_others(causal, tmp_path, monkeypatch, share):
    monkeypatch.setattr(asking, "BLOCK_ROWS", 64)
    data, said, written = load(causal / "run.yaml").data, [], []
    teacher = cached(causal, dir=str(tmp_path / "answers"))
    teacher.prepare(data, 0, said.append, (0, 1))
    before, write = files(teacher.dir), asking.write_block
    spoil(teacher.dir / "000001.answers.npy")
    spoil(teacher.dir / "000003.rows.npy", at=-12)
    (teacher.dir / "000005.rows.npy").unlink()
    monkeypatch.setattr(asking, "write_block", lambda *args: written.append(args[1]) or write(*args))
    assert teacher.prepare(data, 0, said.append, share) is True
    assert written == [1, 3, 5]
    assert files(teacher.dir) == before
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["answers"]
    assert teacher.prepare(data, 0, said.append, share) is True
    assert "made already and sound" in said[-1]


def test_answers_from_before_the_row_of_quarantine_gain_it_where_it_is_needed(causal, tmp_path, monkeypatch):
    monkeypatch.setattr(asking, "BLOCK_ROWS", 64)
    data, said = load(causal / "run.yaml").data, []
    teacher = cached(causal, dir=str(tmp_path / "answers"))
    teacher.prepare(data, 0, said.append, (0, 1))
    whole, index = files(teacher.dir), read_index(teacher.dir)
    for path in block_files(teacher.dir, len(index.blocks) - 1):
        path.unlink()
    write_index(
        teacher.dir, len(index.blocks) - 1, index.facts, index.weights, index.vocabulary, index.keep, index.temperature
    )
    older = files(teacher.dir)
    assert teacher.prepare(data, 0, said.append, (0, 1)) is True
    assert "made already and sound" in said[-1]
    assert files(teacher.dir) == older
    data = load(causal / "run.yaml", ["data.read.damaged=quarantine"]).data
    assert teacher.prepare(data, 0, said.append, (0, 1)) is True
    assert files(teacher.dir) == whole
