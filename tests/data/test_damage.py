"""Every kind of bad shard is named with its file, and either fails or is quarantined."""

from __future__ import annotations

import shutil

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
from megadistill.data.shards import ShardWriter, write_shards
from megadistill.data.staging import Stage, Staging
from megadistill.data.stream import Stream
from megadistill.testing.processes import largest_file
from megadistill.testing.shard_files import ABOUT, flip, tars, token_at

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
