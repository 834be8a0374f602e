"""Every kind of bad shard is named with its file, and either fails or is quarantined; staging keeps its cap."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.core.files import sha256_file, write_json
from megadistill.core.types import IGNORE
from megadistill.data import shards as module
from megadistill.data.index import INDEX, TABLE, read_index
from megadistill.data.prepare import prepare
from megadistill.data.reader import ReadConfig, Shards, verify
from megadistill.data.shards import Layout, ShardWriter, write_shards
from megadistill.data.staging import Stage, Staging
from megadistill.data.stream import Stream, near_bytes
from megadistill.testing.processes import largest_file

ABOUT = {
    "sequence_length": 16,
    "tokenizer": "abc",
    "vocabulary_size": 500,
    "special_ids": {"pad": 0, "cls": 2, "sep": 3},
}


@pytest.fixture
def rows(monkeypatch):
    """1100 rows, written so that they take several members and tars."""
    monkeypatch.setattr(module, "ROWS_PER_MEMBER", 100)
    monkeypatch.setattr(module, "SHARD_BYTES", 30_000)
    rng = np.random.default_rng(0)
    return rng.integers(5, 500, (1100, 16)), np.ones((1100, 16), dtype=np.uint16)


@pytest.fixture
def folder(tmp_path, rows):
    """Those rows on disk."""
    (tmp_path / "shards").mkdir()
    write_shards(tmp_path / "shards", "text", ABOUT, [rows])
    return tmp_path / "shards"


def tars(folder):
    return sorted(folder.glob("*.tar"))


def token_at(member):
    """Offset of a whole member's first token."""
    return Layout(100, 16, 2).row(member, 0, 100)[0]


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


EVERY = np.arange(1100)


def test_a_bit_flipped_between_the_rows_harms_none_and_is_found(folder, rows):
    first = tars(folder)[0]
    flip(first, token_at(1) - 640 + 3)
    assert np.array_equal(Shards(folder).rows(EVERY)[0], rows[0])
    assert str(first) in verify(folder)[0]
    with pytest.raises(UserError, match=f"{first.name} is damaged"):
        Shards(folder, ReadConfig(verify="full"))


def test_a_member_that_is_not_there_is_an_index_that_disagrees(folder):
    content = bytearray(tars(folder)[0].read_bytes())
    content[token_at(1) - 640 : token_at(2) - 640] = bytes(token_at(1) - token_at(0))
    tars(folder)[0].write_bytes(content)
    opened = Shards(folder)
    opened.rows(np.arange(100))
    with pytest.raises(
        UserError, match=r"is damaged(.|\n)*rows 100 to 199: the index expects(.|\n)*there is no member"
    ):
        opened.rows(np.array([100]))


def test_a_tar_of_other_rows_is_told_from_the_one_of_the_index(folder, rows, tmp_path):
    first, second = tars(folder)[:2]
    shutil.copy(second, first)
    with pytest.raises(UserError, match=r"expects 000000-0000000000.tokens.npy(.|\n)*there is 000000-00000005"):
        Shards(folder).rows(np.array([0]))


@pytest.mark.parametrize(
    ("change", "found"), [({"vocabulary_size": 100_000}, "'descr': '<u4'"), ({"length": 32}, r"\(100, 32\)")]
)
def test_rows_of_another_dtype_or_length_are_named(folder, rows, tmp_path, change, found, monkeypatch):
    monkeypatch.setattr(module, "SHARD_BYTES", 10**9)
    length = change.pop("length", 16)
    other = tmp_path / "other"
    other.mkdir()
    blocks = tuple(np.resize(array, (100, length)) for array in rows)
    write_shards(other, "text", ABOUT | {"sequence_length": length} | change, [blocks])
    foreign = tars(other)[0].read_bytes()
    first = tars(folder)[0]
    first.write_bytes((foreign + bytes(first.stat().st_size))[: first.stat().st_size])
    with pytest.raises(UserError, match=f"{first.name} is damaged(.|\n)*({found}|no member)"):
        Shards(folder).rows(np.array([0]))


def test_verify_off_checks_nothing_and_full_checks_all_at_once(folder, rows):
    flip(tars(folder)[1], token_at(0) + 8)
    tokens, _ = Shards(folder, ReadConfig(verify="off")).rows(EVERY)
    assert (tokens != rows[0]).sum() == 1
    with pytest.raises(UserError, match=f"{tars(folder)[1].name} is damaged"):
        Shards(folder, ReadConfig(verify="full"))


def test_a_shard_deleted_in_mid_run_is_named_when_it_is_needed(folder):
    opened = Shards(folder)
    opened.rows(np.array([0]))
    for path in tars(folder)[:2]:
        path.unlink()
    opened.rows(np.array([1]))  # mapped already
    with pytest.raises(UserError, match=f"{opened.name(1)} is missing"):
        opened.rows(opened.table.first_row[1:2])


def test_a_damaged_table_is_refused(folder):
    sound = (folder / TABLE).read_bytes()
    flip(folder / TABLE, 20)
    with pytest.raises(UserError, match=f"{TABLE} is damaged"):
        Shards(folder)
    (folder / TABLE).write_bytes(sound[:-4])
    with pytest.raises(UserError, match=f"{TABLE} is damaged"):
        Shards(folder, ReadConfig(verify="off"))
    (folder / TABLE).unlink()
    with pytest.raises(UserError, match=f"{TABLE} is missing"):
        Shards(folder)


def test_a_shard_listed_twice_is_refused(folder):
    index = read_index(folder)
    data = bytearray((folder / TABLE).read_bytes())
    part = len(data) - 4 * index.shards
    data[part + 4 : part + 8] = data[part : part + 4]
    (folder / TABLE).write_bytes(data)
    changed = index.model_copy(update={"table_sha256": sha256_file(folder / TABLE)})
    write_json(folder / INDEX, changed.model_dump() | {"fingerprint": changed.computed_fingerprint()})
    with pytest.raises(UserError, match=r"lists text-000000-0000.tar twice"):
        Shards(folder)


# ------------------------------------------------------------------ quarantine


def test_quarantine_replaces_damaged_rows_the_same_way_for_ever(folder, rows):
    flip(tars(folder)[1], token_at(1) + 8)
    tars(folder)[2].unlink()
    read = ReadConfig(damaged="quarantine", quarantine_rows=600)
    opened = Shards(folder, read)
    tokens, segments = opened.rows(EVERY)
    first = opened.table.first_row.tolist()
    lost = [(opened.name(1), first[1] + 100, first[1] + 200), (opened.name(2), first[2], first[3])]
    assert opened.lost() == lost
    bad = np.zeros(1100, dtype=bool)
    for _, start, stop in lost:
        bad[start:stop] = True
    assert opened.quarantined_rows == bad.sum()
    assert np.array_equal(tokens[~bad], rows[0][~bad])
    assert (tokens[bad] == [2, *[0] * 15]).all()
    assert (segments[bad] == [1, *[0] * 15]).all()
    write_shards(folder, "text", ABOUT, [rows])  # mended: a run that goes on must not notice
    again = Shards(folder, read)
    for _, start, stop in lost:
        again.lose(start, stop)
    assert again.lost() == lost
    shuffled = np.random.default_rng(0).permutation(1100)
    assert np.array_equal(again.rows(shuffled)[0], tokens[shuffled])
    assert np.array_equal(Shards(folder).rows(EVERY)[0], rows[0])  # others read what is there


def test_quarantine_is_bounded(folder):
    sound = Shards(folder, ReadConfig(damaged="quarantine", quarantine_rows=50))
    with pytest.raises(UserError, match=r"damaged rows in(.|\n)*allows 50"):
        sound.lose(0, 1)  # a rank's, or an earlier attempt's
    tars(folder)[0].unlink()
    with pytest.raises(UserError, match=r"damaged rows in(.|\n)*allows 50"):
        Shards(folder, ReadConfig(damaged="quarantine", quarantine_rows=50))


def test_training_goes_on_around_quarantined_rows(prepared, changed, tmp_path):
    shutil.copytree(prepared.dir, tmp_path / "shards")
    tar = next((tmp_path / "shards" / "two" / "train").glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.chmod(0o644)
    tar.write_bytes(content)
    damaged = changed(prepared, dir=tmp_path / "shards")
    sound = Stream(prepared, World(), 24, 24, 0)
    stream = Stream(changed(damaged, read={"damaged": "quarantine"}), World(), 24, 24, 0)
    assert stream.fingerprint == sound.fingerprint
    lost = 0
    for step in range(4):
        ours, theirs = stream.take(step)[0], sound.take(step)[0]
        assert ours.rows.tolist() == theirs.rows.tolist()
        bad = (ours.ids != theirs.ids).any(dim=1)
        lost += int(bad.sum())
        assert (ours.labels[bad] == IGNORE).all()
        assert (ours.mask[bad].sum(dim=1) == 1).all()
    assert lost > 0
    assert stream.part.lost()[0].items() >= {"corpus": "two", "part": "train", "shard": tar.name}.items()
    failing = Stream(damaged, World(), 24, 24, 0)
    with pytest.raises(UserError, match="damaged"):
        [failing.take(step) for step in range(4)]


def test_what_cannot_be_fetched_is_not_taken_for_damaged(folder, tmp_path):
    read = ReadConfig(damaged="quarantine")
    opened = Shards(folder, read, Stage(Staging(dir=tmp_path / "near", max_gigabytes=1), str(folder), "text"))
    with largest_file(10_000), pytest.raises(UserError, match="cannot stage shard"):
        opened.rows(np.array([0]))
    assert opened.lost() == []
    assert opened.rows(np.array([0]))[0].any()


# ------------------------------------------------------------------ staging


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


# ------------------------------------------------------------------ where nothing can be written


@pytest.mark.parametrize("place", ["/proc", "/proc/prepared"])
def test_a_folder_that_cannot_be_written_to_is_named(prepared, changed, place):
    with pytest.raises(UserError, match=r"data.dir /proc.* cannot be (written to|made)"):
        prepare(changed(prepared, dir=place), lambda line: None)


def test_a_full_disk_leaves_no_shard_that_looks_whole(tmp_path, rows):
    with largest_file(10_000), pytest.raises(OSError, match="File too large"):
        write_shards(tmp_path, "text", ABOUT, [rows])
    assert list(tmp_path.iterdir()) == []


def test_two_corpora_of_different_tokenizers_are_refused(prepared, changed, tmp_path, tokenizer_folder):
    words = (tokenizer_folder / "vocab.txt").read_text().split()
    (tmp_path / "vocab.txt").write_text("\n".join([*words, "extra"]))
    shutil.copytree(prepared.dir / "one", tmp_path / "shards" / "one")
    other = changed(
        prepared, dir=tmp_path / "shards", tokenizer=str(tmp_path), corpora=[prepared.corpora[1].model_dump()]
    )
    prepare(other, lambda line: None)
    with pytest.raises(UserError, match=r"two/train was prepared otherwise(.|\n)*another tokenizer"):
        Stream(changed(prepared, dir=tmp_path / "shards"), World(), 24, 24, 0)


def test_a_writer_never_takes_ids_beyond_the_vocabulary(tmp_path):
    writer = ShardWriter(tmp_path, "text", 0, 500)
    with pytest.raises(AssertionError):
        writer.add(np.full((1, 16), 500), np.ones((1, 16), dtype=np.uint16))
