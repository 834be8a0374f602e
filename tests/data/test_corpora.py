"""Every kind of corpus reads what its config says, and names what is wrong with its files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard
from pydantic import TypeAdapter, ValidationError

import megadistill.data.config  # noqa: F401  the kinds
from megadistill.core.errors import UserError
from megadistill.core.schema import OneOf
from megadistill.data.corpora.base import Corpus


def corpus(**values) -> Corpus:
    return TypeAdapter(OneOf[Corpus]).validate_python(values)


def texts(**values) -> list[str]:
    made = corpus(**values)
    return [text for source in made.sources() for text in made.read(source)]


def test_names_default_to_the_kind_and_are_folder_names():
    assert corpus(kind="text", files=["x"]).name == "text"
    assert corpus(kind="text", files=["x"], name="wiki.2024").name == "wiki.2024"
    with pytest.raises(ValidationError):
        corpus(kind="text", files=["x"], name="../up")


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("file", ["one\ntwo\n\nthree\n"]),
        ("line", ["one", "two", "three"]),
        ("paragraph", ["one\ntwo", "three"]),
    ],
)
def test_text_documents(tmp_path, document, expected):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n\r\nthree\r\n\r\n")
    assert texts(kind="text", files=[str(tmp_path / "a.txt")], document=document) == expected


def test_files_come_sorted_and_once_whatever_the_patterns(tmp_path):
    for name in ("b.txt", "a.txt", "deep/c.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    patterns = [str(tmp_path / "**" / "*.txt"), str(tmp_path / "a.txt")]
    assert texts(kind="text", files=patterns) == ["a.txt", "b.txt", "deep/c.txt"]


def test_remote_files_are_read_through_fsspec(tmp_path):
    import fsspec

    with fsspec.open("memory://corpora/a.txt", "w") as handle:
        handle.write("far away")
    assert texts(kind="text", files=["memory://corpora/*.txt"]) == ["far away"]


def test_a_pattern_without_files_says_what_is_there(tmp_path):
    (tmp_path / "wiki.parquet").touch()
    with pytest.raises(UserError, match=r"no file matches") as caught:
        corpus(kind="parquet", files=[str(tmp_path / "*.pqt")]).sources()
    assert "wiki.parquet" in str(caught.value)


def test_rows_are_joined_into_documents(tmp_path):
    (tmp_path / "a.txt").write_text("1\n2\n3\n4\n5\n")
    found = texts(kind="text", files=[str(tmp_path / "a.txt")], document="line", join_rows=2)
    assert found == ["1\n2", "3\n4", "5"]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_jsonl(tmp_path, suffix):
    content = "".join(json.dumps({"body": t}) + "\n" for t in ("hé", None, "two\nlines")).encode() + b"\n"
    pack = {".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}.get(Path(suffix).suffix, bytes)
    (tmp_path / f"a{suffix}").write_bytes(pack(content))
    assert texts(kind="jsonl", files=[str(tmp_path / "*")], field="body") == ["hé", "two\nlines"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "line 2 is not JSON"),
        ("a.jsonl", b'{"text": "x"}\n\n{"txt": "y"}\n', "line 3 has no field 'text'"),
        ("a.jsonl", b"[1]\n", "line 1 has no field"),
        ("a.jsonl", b'{"text": 3}\n', "line 1: 'text' is not text"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n', "line 2, byte 11"),
        (
            "a.jsonl",
            b'{"text": "x \\ud83d\\ude00"}\n{"text": "x \\ud800"}\n',
            r"line 2: 'text' is not .*\n.*3 is \\ud800",
        ),
        ("a.jsonl.gz", b'{"text": "x"}\n', "cannot be unpacked"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}\n' * 1000, mtime=0)[:-9], "cannot be unpacked"),
        ("a.jsonl.zst", b'{"text": "x"}\n', "cannot be unpacked"),
    ],
)
def test_what_is_wrong_with_a_jsonl_file(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        texts(kind="jsonl", files=[str(tmp_path / name)])
    assert name in str(caught.value)


@pytest.fixture
def parquet(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    rows = [f"text {n}" for n in range(600)]
    pq.write_table(pa.table({"text": [*rows, None], "id": range(601)}), path)
    return path, rows


def test_parquet(parquet):
    path, rows = parquet
    assert texts(kind="parquet", files=[str(path)]) == rows


def test_what_is_wrong_with_a_parquet_file(parquet):
    path, _ = parquet
    with pytest.raises(UserError, match="no column 'txt'") as caught:
        texts(kind="parquet", files=[str(path)], column="txt")
    assert "text, id" in str(caught.value)
    with pytest.raises(UserError, match="'id' is not text"):
        texts(kind="parquet", files=[str(path)], column="id")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="cannot be read as parquet"):
        texts(kind="parquet", files=[str(path)])


def test_hub_data_sets_are_streamed_from_a_folder_too(parquet):
    path, rows = parquet
    assert texts(kind="hub", path=str(path.parent)) == rows
    with pytest.raises(UserError, match="no column 'body'"):
        texts(kind="hub", path=str(path.parent), column="body")
    with pytest.raises(UserError, match="cannot read hub data set"):
        texts(kind="hub", path=str(path.parent), split="nothing")


def test_a_hub_name_without_network_is_a_users_error(monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot read hub data set nobody/has-this"):
        texts(kind="hub", path="nobody/has-this")


# ------------------------------------------------------------------ tars, made-up text, several columns, long lines


def tar(path, members, compress=bytes):
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as handle:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            handle.addfile(entry, io.BytesIO(data))
    path.write_bytes(compress(buffer.getvalue()))
    return path


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.tar", bytes),
        ("a.tar.gz", gzip.compress),
        ("a.tar.zst", lambda data: zstandard.ZstdCompressor().compress(data)),
    ],
)
def test_webdataset_tars(tmp_path, name, pack):
    members = [("x/1.txt", "hé".encode()), ("x/1.json", b"{}"), ("x/2.txt", b"two"), ("x/2.cls", b"3")]
    path = str(tar(tmp_path / name, members, pack))
    assert texts(kind="webdataset", files=[path]) == ["hé", "two"]
    members = [("1.meta.json", b'{"body": "one"}'), ("1.txt", b"")]
    path = str(tar(tmp_path / name, members, pack))
    assert texts(kind="webdataset", files=[path], extension="meta.json", field="body") == ["one"]


MEMBERS = [(f"{n}.txt", b"x" * 700) for n in range(5)]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:4000], "cannot be read as a tar|is cut short"),
        (lambda data: data[: 5 * 1536], "is cut short"),
        (lambda data: data[:1540] + b"\xff" + data[1541:], "is damaged"),
        (lambda data: data[:3] + b"\xff" + data[4:], "cannot be read as a tar"),
    ],
)
def test_what_is_wrong_with_a_tar(tmp_path, spoil, message):
    path = tar(tmp_path / "a.tar", MEMBERS)
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=message) as caught:
        texts(kind="webdataset", files=[str(path)])
    assert "a.tar" in str(caught.value)


def test_a_member_that_does_not_fit_into_memory_is_refused(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as handle, open("/dev/zero", "rb") as zeros:
        entry = tarfile.TarInfo("1.txt")
        entry.size = 65_000_000
        handle.addfile(entry, zeros)
    with pytest.raises(UserError, match=r"member 1.txt is longer than 64 MB"):
        texts(kind="webdataset", files=[str(tmp_path / "a.tar")])


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ([("1.txt", b"\xff")], {}, "member 1.txt is not UTF-8"),
        ([("1.txt", b"a"), ("1.txt", b"b")], {}, "member 1.txt is there twice"),
        ([("1.json", b"{")], {"extension": "json"}, "member 1.json is not JSON"),
        ([("1.json", b'{"x": 1}')], {"extension": "json"}, "has no text in field 'text'"),
    ],
)
def test_what_is_wrong_in_a_tar(tmp_path, members, options, message):
    path = tar(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=message):
        texts(kind="webdataset", files=[str(path)], **options)


def test_synthetic_text_is_of_any_size_and_always_the_same(monkeypatch):
    from megadistill.data.corpora import synthetic

    whole = texts(kind="synthetic", num_documents=25, words=50)
    assert len(whole) == len(set(whole)) == 25
    assert 40 < sum(len(text.split()) for text in whole) / 25 < 60
    assert texts(kind="synthetic", num_documents=25, words=50, seed=1) != whole
    monkeypatch.setattr(synthetic, "DOCUMENTS_PER_SOURCE", 10)
    made = corpus(kind="synthetic", num_documents=25, words=50)
    assert [source.name for source in made.sources()] == [f"documents from {n}" for n in (0, 10, 20)]
    assert texts(kind="synthetic", num_documents=25, words=50) == whole


def test_several_columns_are_joined(parquet):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path, _ = parquet
    pq.write_table(pa.table({"title": ["A", None, None], "text": ["one", "two", None]}), path)
    for kind in ({"kind": "parquet", "files": [str(path)]}, {"kind": "hub", "path": str(path.parent)}):
        assert texts(**kind, column=["title", "text"]) == ["A\none", "two"]


def test_every_file_of_a_hub_data_set_is_a_source(parquet):
    import shutil

    path, rows = parquet
    shutil.copy(path, path.with_name("b.parquet"))
    made = corpus(kind="hub", path=str(path.parent))
    sources = made.sources()
    assert len(sources) == 2
    assert [list(made.read(source)) for source in sources] == [rows, rows]


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_a_two_gigabyte_line_is_refused_before_it_is_in_memory(tmp_path, kind):
    path = tmp_path / "huge.txt"
    with open(path, "wb") as handle:
        handle.write(b"a short line\n" if kind == "text" else b'{"text": "a"}\n')
        handle.truncate(2_000_000_000)  # the rest is one line of zeros, and takes no room
    with pytest.raises(UserError, match=r"huge.txt line 2 is longer than 64 MB(.|\n)*fold"):
        texts(kind=kind, files=[str(path)])


def test_mixed_encodings_are_told_with_the_line_and_the_way_out(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"gut\n" + "schön\n".encode("latin1"))
    with pytest.raises(UserError, match=r"a.txt is not UTF-8(.|\n)*line 2, byte 4(.|\n)*-f latin1"):
        texts(kind="text", files=[str(tmp_path / "a.txt")])
    (tmp_path / "a.txt").write_bytes("gut".encode("utf-16"))
    with pytest.raises(UserError, match=r"-f UTF-16"):
        texts(kind="text", files=[str(tmp_path / "a.txt")])


def test_passes_are_checked_against_the_weights(tokenizer_folder):
    from megadistill.data.config import DataConfig

    def mixture(**values):
        corpora = [{"kind": "text", "files": ["x"], **values}]
        return DataConfig.model_validate({"dir": "x", "tokenizer": str(tokenizer_folder), "corpora": corpora})

    with pytest.raises(ValidationError, match="epochs needs weights"):
        mixture(epochs=2)
    with pytest.raises(ValidationError, match="repeats is for mixtures without weights"):
        mixture(repeats=2, weight=1)
