"""Shards: what is written is what is read, by us and by plain webdataset, and damage is found and named."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from megadistill.core.errors import UserError
from megadistill.data import shards, span
from megadistill.data.index import read_index, read_table, write_index
from megadistill.data.reader import Shards, verify
from megadistill.data.shards import Layout, ShardWriter

ABOUT = {
    "sequence_length": 16,
    "tokenizer": "abc",
    "vocabulary_size": 500,
    "special_ids": {"pad": 0, "sep": None},
}


@pytest.fixture
def rows(monkeypatch):
    """1100 rows, written so that they take several members and tars."""
    monkeypatch.setattr(shards, "ROWS_PER_MEMBER", 100)
    monkeypatch.setattr(shards, "SHARD_BYTES", 30_000)
    rng = np.random.default_rng(0)
    return rng.integers(0, 500, (1100, 16)), rng.integers(0, 4, (1100, 16)).astype(np.uint16)


def written(folder, rows, about=ABOUT, block=170):
    """Two tasks write the rows; a shard and a member end where the first task does."""
    folder.mkdir(exist_ok=True)
    made = []
    for task, part in enumerate((slice(0, 640), slice(640, None))):
        writer = ShardWriter(folder, "text", task, about["vocabulary_size"])
        tokens, segments = (array[part] for array in rows)
        for start in range(0, len(tokens), block):
            writer.add(tokens[start : start + block], segments[start : start + block])
        made += writer.finish()
    return write_index(folder, "text", about | {"dtype": writer.dtype.name}, made, shards.ROWS_PER_MEMBER)


def names(folder):
    return sorted(path.name for path in folder.glob("*.tar"))


def test_rows_are_read_back_in_any_order(tmp_path, rows):
    index = written(tmp_path, rows)
    assert index.shards == len(names(tmp_path)) > 2
    assert index.members > index.shards
    assert index.rows == 1100
    assert index.dtype == "uint16"
    opened = Shards(tmp_path)
    chosen = np.random.default_rng(1).integers(0, 1100, 500)
    tokens, segments = opened.rows(chosen)
    assert tokens.dtype == segments.dtype == np.uint16
    assert np.array_equal(tokens, rows[0][chosen])
    assert np.array_equal(segments, rows[1][chosen])
    assert verify(tmp_path) == []
    assert not list(tmp_path.glob(".*"))


def test_more_tars_than_may_be_mapped_at_once(tmp_path, rows, monkeypatch):
    written(tmp_path, rows)
    monkeypatch.setattr(span, "MOST_MAPPED", 2)
    opened = Shards(tmp_path)
    assert opened.index.shards > 2
    for chosen in np.random.default_rng(1).integers(0, 1100, (100, 2)):
        tokens, segments = opened.rows(chosen)
        assert np.array_equal(tokens, rows[0][chosen])
        assert np.array_equal(segments, rows[1][chosen])


def test_large_vocabularies_take_four_bytes(tmp_path, rows):
    tokens = rows[0] + 100_000
    index = written(tmp_path, (tokens, rows[1]), ABOUT | {"vocabulary_size": 128_000})
    assert index.dtype == "uint32"
    assert np.array_equal(Shards(tmp_path).rows(np.arange(1100))[0], tokens)


def test_plain_webdataset_reads_equal_rows(tmp_path, rows):
    import webdataset

    written(tmp_path, rows)
    urls = [str(tmp_path / name) for name in names(tmp_path)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    for key, expected in (("tokens.npy", rows[0]), ("segments.npy", rows[1])):
        assert np.array_equal(np.concatenate([np.load(io.BytesIO(s[key])) for s in samples]), expected)


def test_equal_rows_have_equal_files_however_they_came(tmp_path, rows):
    one, two = written(tmp_path / "a", rows, block=170), written(tmp_path / "b", rows, block=33)
    assert one == two
    assert one.fingerprint != written(tmp_path / "c", rows, ABOUT | {"tokenizer": "other"}).fingerprint


def flip(path, offset):
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def test_a_flipped_byte_is_found_by_verify_and_by_reading(tmp_path, rows):
    index = written(tmp_path, rows)
    table = read_table(tmp_path, index)
    damaged = tmp_path / names(tmp_path)[1]
    flip(damaged, Layout(100, 16, 2).row(0, 0, 100)[0] + 40)
    problems = verify(tmp_path)
    assert len(problems) == 1
    assert str(damaged) in problems[0]
    opened = Shards(tmp_path)
    opened.rows(np.array([0]))
    with pytest.raises(UserError, match="is damaged") as caught:
        opened.rows(table.first_row[1:2])
    assert damaged.name in str(caught.value)


def test_missing_and_short_files_are_named_when_opened(tmp_path, rows):
    written(tmp_path, rows)
    path = tmp_path / names(tmp_path)[-1]
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(UserError, match=f"{path.name} is damaged"):
        Shards(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} is missing"):
        Shards(tmp_path)
    assert len(verify(tmp_path)) == 1


def test_an_altered_or_foreign_index_is_refused(tmp_path, rows):
    written(tmp_path, rows)
    path = tmp_path / "index.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"rows": 1099}))
    with pytest.raises(UserError, match="was altered"):
        read_index(tmp_path)
    path.write_text(json.dumps(values | {"format_version": 99}))
    with pytest.raises(UserError, match="another version"):
        read_index(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        read_index(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="megadistill prepare"):
        read_index(tmp_path)
