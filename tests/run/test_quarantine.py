"""Rows that were given up as damaged stay given up, whoever goes on, and the journal names them."""

import shutil

import pytest

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.core.types import IGNORE
from megadistill.data.prepare import prepare
from megadistill.data.stream import HeldOut, Stream
from megadistill.run.config import load
from megadistill.run.directory import RunDirectory
from megadistill.run.quarantine import Quarantine
from megadistill.testing import workspace


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"))
    prepare(load(path).data, lambda line: None)
    return path


def started(path, name, *assignments):
    """(directory, stream, quarantine) of an attempt at a run."""
    config = load(path, [f"name={name}", *assignments])
    directory = RunDirectory.open(config, False, World())
    directory.claim()
    stream = Stream(config.data, World(), 16, 16, config.seed)
    quarantine = Quarantine(directory, (stream.part, HeldOut(config.data).part))
    quarantine.recall()
    return directory, stream, quarantine


def test_damaged_rows_are_journaled_once_and_stay_out_when_the_shard_is_mended(made, tmp_path):
    copy = tmp_path / "prepared"
    shutil.copytree(load(made).data.dir, copy)
    tar = next((copy / "text" / "train").glob("*.tar"))
    sound = tar.read_bytes()
    tar.write_bytes(sound[:700] + bytes([sound[700] ^ 1]) + sound[701:])
    options = [f"data.dir={copy}", "data.read.damaged=quarantine"]
    directory, stream, quarantine = started(made, "damaged", *options)
    before = [stream.take(step)[0] for step in range(8)]
    assert (before[0].labels != IGNORE).any()
    quarantine.agree(8)
    quarantine.agree(9)
    told = [event for event in directory.events() if event["event"] == "quarantine"]
    lost = {"corpus": "text", "part": "train", "shard": tar.name, "rows": [0, 256]}
    assert [{name: event[name] for name in ("step", *lost)} for event in told] == [{"step": 8, **lost}]

    tar.write_bytes(sound)
    _, again, _ = started(made, "damaged", *options)
    assert all(again.take(step)[0].ids.equal(batch.ids) for step, batch in enumerate(before))
    assert not all(
        Stream(load(made).data, World(), 16, 16, 0).take(s)[0].ids.equal(b.ids) for s, b in enumerate(before)
    )
    with pytest.raises(UserError, match="quarantine_rows allows 9"):
        started(made, "damaged", *options, "data.read.quarantine_rows=9")
