"""Copies of shards near by: the same rows, below a cap, and every kind of damage is named or quarantined."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.data import shards as module
from megadistill.data.locality import near_bytes
from megadistill.data.prepare import prepare
from megadistill.data.reader import ReadConfig, Shards
from megadistill.data.staging import Stage, Staging
from megadistill.data.stream import Stream
from megadistill.testing.shard_files import flip, tars, token_at

EVERY = np.arange(1100)


@pytest.mark.parametrize("spoil", [lambda path: flip(path, 5000), lambda path: path.unlink()])
def test_what_is_damaged_or_missing_far_away_is_quarantined(folder, tmp_path, spoil):
    spoil(tars(folder)[0])
    stage = Stage(Staging(dir=tmp_path / "near", max_gigabytes=1), str(folder), "text")
    opened = Shards(folder, ReadConfig(damaged="quarantine"), stage)
    opened.rows(np.array([0]))
    assert [lost.shard for lost in opened.lost()] == [opened.name(0)]


def test_a_copy_that_was_damaged_near_by_is_named_and_fetched_again(folder, rows, tmp_path):
    opened, _ = staged(folder, tmp_path, 1)
    opened.rows(EVERY)
    near = tars(tmp_path / "near" / "text")[0]
    flip(near, token_at(0) + 8)
    with pytest.raises(UserError, match=f"{near} is damaged(.|\\n)*remove this copy"):
        staged(folder, tmp_path, 1)[0].rows(EVERY)
    near.unlink()
    assert np.array_equal(staged(folder, tmp_path, 1)[0].rows(EVERY)[0], rows[0])


def staged(folder, tmp_path, gigabytes, far=None):
    stage = Stage(Staging(dir=tmp_path / "near", max_gigabytes=gigabytes), far or str(folder), "text")
    return Shards(folder, ReadConfig(), stage), stage


def test_staged_shards_are_the_same_and_stay_below_the_cap(folder, rows, tmp_path):
    size = tars(folder)[0].stat().st_size
    opened, stage = staged(folder, tmp_path, 1.5 * size / 1e9)
    for chosen in np.random.default_rng(0).integers(0, 1100, (8, 40)):
        assert np.array_equal(opened.rows(chosen)[0], rows[0][chosen])
        assert stage.staged_bytes() <= 1.5 * size
    assert 0 < len(tars(tmp_path / "near" / "text")) < opened.index.shards


def removed_but_mapped(folder):
    """Files below a folder that take room though they have no name any more."""
    return [
        line for line in Path("/proc/self/maps").read_text().splitlines() if f"{folder}/" in line and "(del" in line
    ]


def test_copies_that_were_removed_take_no_more_room(folder, rows, tmp_path):
    opened, stage = staged(folder, tmp_path, 1.5 * tars(folder)[0].stat().st_size / 1e9)
    for start in range(0, 1100, 50):
        chosen = np.arange(start, min(start + 50, 1100))
        assert np.array_equal(opened.rows(chosen)[0], rows[0][chosen])
        assert not removed_but_mapped(tmp_path)
    for path in tars(stage.folder):  # as another process may do, and one more may copy it again
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
    assert removed_but_mapped(tmp_path)
    assert np.array_equal(opened.rows(EVERY[-1:])[0], rows[0][-1:])
    assert not removed_but_mapped(tmp_path)


def test_a_mapped_shard_is_not_copied_again_and_counts_as_used(folder, tmp_path, monkeypatch):
    opened, stage = staged(folder, tmp_path, 1)
    opened.rows(EVERY)
    first, second = tars(stage.folder)[:2]
    for path in tars(stage.folder):
        os.utime(path, (0, 0))
    second.unlink()
    monkeypatch.setattr(stage, "_copy", lambda *_: pytest.fail("copied again"))
    opened.fetch(0), opened.fetch(1)
    assert first.stat().st_mtime > 0
    assert np.array_equal(opened.rows(EVERY[:1])[0], Shards(folder).rows(EVERY[:1])[0])


def test_a_cap_that_holds_two_windows_of_whole_shards_copies_each_once_a_window(
    prepared, changed, tmp_path, monkeypatch
):
    monkeypatch.setattr("megadistill.data.prepare.ROWS_PER_MEMBER", 4)
    monkeypatch.setattr(module, "ROWS_PER_MEMBER", 4)
    monkeypatch.setattr(module, "SHARD_BYTES", 1000)
    blocks = {"rows": 6, "window": 5}
    small = changed(prepared, dir=tmp_path / "far", corpora=prepared.corpora[:1], order="block", blocks=blocks)
    prepare(small, lambda line: None, workers=1)
    table = Stream(small, World(), 8, 8, 0).part.shards[0].table
    total, cap = int(table.bytes.sum()), near_bytes(table, small.blocks)
    assert 2 * (5 + 1) * table.bytes.max() <= cap < total / 2

    def staging(size):
        return changed(small, read={"staging": {"dir": tmp_path / "near", "max_gigabytes": size / 1e9, "ahead": 2}})

    with pytest.raises(UserError, match=r"whole shards are copied: those of 5 blocks of 6 rows"):
        Stream(staging(cap - 1), World(), 8, 8, 0)
    stream = Stream(staging(cap), World(), 8, 8, 0)
    shards = stream.part.shards[0]
    copied = []
    copy = shards.stage._copy
    monkeypatch.setattr(shards.stage, "_copy", lambda name, *rest: copied.append(name) or copy(name, *rest))
    steps = stream.rows_per_epoch // 8
    for _ in stream.prefetching(0, steps):
        assert shards.stage.staged_bytes() <= cap + table.bytes.max()  # one on its way
    stream.take(steps - 1)
    assert not removed_but_mapped(tmp_path)
    rows = np.concatenate([stream.places(step).row for step in range(steps)])
    wanted = set(zip((np.arange(len(rows)) // 30).tolist(), shards.shards_of(rows).tolist(), strict=True))
    assert len(copied) <= len(wanted) < 2 * shards.index.shards


def test_a_staged_shard_is_checked_and_named(folder, tmp_path):
    flip(tars(folder)[0], 5000)
    opened, _ = staged(folder, tmp_path, 1)
    with pytest.raises(UserError, match=f"{opened.name(0)} is damaged"):
        opened.rows(np.array([0]))
    tars(folder)[0].unlink()
    with pytest.raises(UserError, match=f"{opened.name(0)} is missing"):
        opened.rows(np.array([0]))
    assert not [path for path in (tmp_path / "near" / "text").iterdir() if not path.name.endswith(".lock")]


def test_a_stream_reads_an_object_store_through_its_staging_folder(prepared, changed, tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    for path in prepared.dir.rglob("*"):
        if path.is_file() and not path.name.startswith("."):
            store.pipe(f"/bucket/{path.relative_to(prepared.dir)}", path.read_bytes())
    staging = {"dir": tmp_path / "near", "max_gigabytes": 0.1, "source": "memory://bucket"}
    far = changed(prepared, dir=tmp_path / "indexes", read={"staging": staging})
    stream, expected = Stream(far, World(), 24, 24, 0), Stream(prepared, World(), 24, 24, 0)
    assert stream.fingerprint == expected.fingerprint
    for (ours,), (theirs,) in zip(stream.prefetching(0, 3), expected.prefetching(0, 3), strict=True):
        assert ours.ids.equal(theirs.ids)
    assert len(list((tmp_path / "near").rglob("*.tar"))) == 2
    assert not list((tmp_path / "indexes").rglob("*.tar"))
    with pytest.raises(UserError, match=r"data\.packing was"):
        Stream(changed(far, packing="split", dir=tmp_path / "elsewhere"), World(), 24, 24, 0)


def test_a_corpus_larger_than_the_cap_needs_order_block(prepared, changed, tmp_path):
    staging = {"dir": tmp_path / "near", "max_gigabytes": 1e-5}
    small = changed(prepared, read={"staging": staging})
    with pytest.raises(UserError, match=r"larger than data.read.staging(.|\n)*data.order: block"):
        Stream(small, World(), 24, 24, 0)
    with pytest.raises(UserError, match="a window of blocks does not fit"):
        Stream(changed(small, order="block"), World(), 24, 24, 0)
    with pytest.raises(UserError, match=r"larger than data\.read\.staging"):
        prepare(small, lambda line: None)
