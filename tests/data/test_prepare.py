"""Prepare: what it keeps, that it is whole or not there, and that it does nothing twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from megadistill.core.errors import UserError
from megadistill.data import prepare as module
from megadistill.data.config import DataConfig
from megadistill.data.documents import content_hash
from megadistill.data.index import read_index
from megadistill.data.prepare import prepare, read_corpus_stats
from megadistill.data.reader import Shards
from megadistill.data.tokenization import load_tokenizer
from megadistill.testing.processes import largest_file


@pytest.fixture
def config(tmp_path, tokenizer_folder, documents):
    """150 documents, of which 50 are there twice (once in other case and spacing)."""
    some = documents(150)
    again = [" " + text.upper().replace(" ", "  ") for text in some[:50]]
    (tmp_path / "text.txt").write_text("\n".join([*some, *again]))
    return DataConfig.model_validate(
        {
            "dir": tmp_path / "shards",
            "tokenizer": str(tokenizer_folder),
            "sequence_length": 16,
            "held_out": {"fraction": 0.2},
            "corpora": [{"kind": "text", "files": [str(tmp_path / "text.txt")], "document": "line"}],
        }
    )


def quiet(line):
    pass


def tokens_of(folder):
    shards = Shards(folder)
    tokens, segments = shards.rows(np.arange(len(shards)))
    return tokens[segments > 0].tolist()


def test_rows_are_the_documents_without_duplicates_in_two_parts(config, documents, tokenizer_folder):
    stats = prepare(config, quiet).corpora[0]
    assert (stats.documents, stats.duplicates) == (150, 50)
    tokenizer = load_tokenizer(str(tokenizer_folder))
    expected = {"train": [], "held_out": []}
    for text in documents(150):
        part = "held_out" if content_hash(text) < 0.2 * 2**64 else "train"
        expected[part] += [2, *tokenizer.encode(text), 3]
    for part, summary in (("train", stats.train), ("held_out", stats.held_out)):
        assert tokens_of(config.dir / "text" / part) == expected[part]
        assert summary.tokens == len(expected[part])
        assert summary.rows == len(Shards(config.dir / "text" / part))
    assert 15 < stats.held_out.documents < 45
    assert stats.train.documents + stats.held_out.documents == 150
    counts = np.load(config.dir / "text" / "token_counts.npy")
    assert counts.tolist() == np.bincount(expected["train"], minlength=65).tolist()
    assert json.loads((config.dir / "text" / "stats.json").read_text())["duplicates"] == 50


def test_a_second_time_does_nothing_until_something_changes(config, changed, tmp_path):
    lines = []
    assert prepare(config, lines.append).fresh == ["text"]
    index = read_index(config.dir / "text" / "train")
    assert prepare(config, lines.append).fresh == []
    assert "prepared already" in lines[-1]
    reweighted = changed(config, corpora=[config.corpora[0].model_dump() | {"weight": 2.0}])
    assert prepare(reweighted, quiet).fresh == []
    assert prepare(changed(config, sequence_length=32), lines.append).fresh == ["text"]
    assert prepare(changed(config, sequence_length=32, packing="split"), lines.append).fresh == ["text"]
    told = [line for line in lines if "replaces what is in" in line]
    assert len(told) == 2
    assert told[1].endswith('data.packing was "concat", and is "split"')
    assert prepare(config, quiet).fresh == ["text"]
    assert read_index(config.dir / "text" / "train") == index  # equal input, equal bytes
    with open(tmp_path / "text.txt", "a") as handle:
        handle.write("\nbano dera fisa")
    assert prepare(config, quiet).fresh == ["text"]
    assert sorted(p.name for p in config.dir.iterdir()) == [".text.lock", "text"]


def test_the_half_made_work_of_a_corpus_of_a_longer_name_stays(config):
    ours, other = (config.dir / f".{name}.0123456789abcdef.making" for name in ("text", "text.en"))
    for folder in (ours, other):
        (folder / "encoded").mkdir(parents=True)
    prepare(config, quiet)
    assert other.exists()
    assert not ours.exists()


def test_damaged_shards_are_made_again(config):
    prepare(config, quiet)
    tar = next((config.dir / "text" / "train").glob("*.tar"))
    sound = tar.read_bytes()
    tar.chmod(0o644)
    tar.write_bytes(sound[:2000] + bytes([sound[2000] ^ 1]) + sound[2001:])
    lines = []
    assert prepare(config, lines.append).fresh == ["text"]
    assert tar.name in lines[0]
    assert tar.read_bytes() == sound


def test_limits(config, changed):
    corpus = config.corpora[0].model_dump()
    stats = prepare(changed(config, corpora=[corpus | {"max_documents": 30}]), quiet).corpora[0]
    assert stats.documents == 30
    stats = prepare(changed(config, corpora=[corpus | {"max_megabytes": 0.005}]), quiet).corpora[0]
    assert 0.005 <= stats.megabytes < 0.0055
    stats = prepare(changed(config, held_out={"fraction": 0.2, "max_rows": 7}), quiet).corpora[0]
    assert stats.held_out.rows == 7


def test_split_packing(config, changed):
    stats = prepare(changed(config, packing="split"), quiet).corpora[0]
    shards = Shards(config.dir / "text" / "train")
    tokens, segments = shards.rows(np.arange(len(shards)))
    assert (tokens[:, 0] == 2).all()
    assert set(np.unique(segments)) == {0, 1}
    assert stats.train.padding_share > 0


def test_unknown_tokens_are_counted(config, tmp_path, documents):
    with open(tmp_path / "text.txt", "a") as handle:
        handle.writelines(f"\nxyzzy {text}" for text in documents(150, seed=7))
    stats = prepare(config, quiet).corpora[0]
    assert stats.unknown_share == pytest.approx(stats.train.documents / 2 / stats.train.tokens, rel=0.2)


def test_documents_that_say_nothing_are_none(config, changed, tmp_path, documents):
    texts = documents(40)
    lines = [json.dumps({"text": text}) for text in ("", *texts[:20], " \n\t", "", *texts[20:])]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    corpus = {"kind": "jsonl", "name": "text", "files": [str(tmp_path / "text.jsonl")]}
    stats = prepare(changed(config, corpora=[corpus]), quiet).corpora[0]
    assert (stats.documents, stats.duplicates) == (40, 0)
    assert "0" not in stats.document_lengths


def test_an_empty_corpus_is_a_users_error_and_leaves_nothing(config, tmp_path):
    (tmp_path / "text.txt").write_text("\n \n")
    with pytest.raises(UserError, match="gives no training rows"):
        prepare(config, quiet)
    assert [p.name for p in config.dir.iterdir()] == [".text.lock"]


def test_a_full_disk_is_a_users_error_and_the_old_shards_stay(config, changed, monkeypatch):
    prepare(config, quiet)
    other = changed(config, sequence_length=32)
    with largest_file(25_000), pytest.raises(UserError, match=r"no space left(.|\n)*work wait in (\S+)") as caught:
        prepare(other, quiet)
    making = config.dir / caught.value.why.rpartition(" ")[2]
    assert (making / "encoded" / "000000.npz").exists()
    assert read_index(config.dir / "text" / "train").sequence_length == 16
    monkeypatch.setattr(module, "encode", lambda *_: pytest.fail("read again"))
    assert prepare(other, quiet).fresh == ["text"]
    assert sorted(p.name for p in config.dir.iterdir()) == [".text.lock", "text"]


def test_an_error_in_the_corpus_passes_through(config, tmp_path):
    (tmp_path / "text.txt").write_bytes(b"fine\n\xff\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        prepare(config, quiet)


def test_a_folder_of_the_users_own_text_is_never_replaced(config, changed, tmp_path):
    (tmp_path / "data" / "text").mkdir(parents=True)
    (tmp_path / "text.txt").rename(tmp_path / "data" / "text" / "mine.txt")
    corpus = config.corpora[0].model_dump() | {"files": [str(tmp_path / "data" / "text" / "*.txt")]}
    with pytest.raises(UserError, match=r"was not made by prepare(.|\n)*mine.txt(.|\n)*set another data.dir"):
        prepare(changed(config, dir=tmp_path / "data", corpora=[corpus]), quiet)
    assert [path.name for path in (tmp_path / "data" / "text").iterdir()] == ["mine.txt"]
    (config.dir / "text").mkdir(parents=True)  # an empty folder is nobody's text
    assert prepare(changed(config, corpora=[corpus]), quiet).fresh == ["text"]


def test_a_file_in_the_place_of_a_folder_is_a_users_error(config, changed, tmp_path):
    with pytest.raises(UserError, match=r"data.dir .* is no folder"):
        prepare(changed(config, dir=tmp_path / "text.txt"), quiet)
    config.dir.mkdir()
    (config.dir / "text").write_text("mine")
    with pytest.raises(UserError, match="was not made by prepare"):
        prepare(config, quiet)
    assert (config.dir / "text").read_text() == "mine"


KILLED = """
import sys, time
from pathlib import Path
from megadistill.data import prepare as module
from megadistill.data.config import DataConfig
write_json = module.write_json
def stall(path, value):
    print("ready", flush=True)
    time.sleep(60)
module.write_json = stall
module.prepare(DataConfig.model_validate_json(Path(sys.argv[1]).read_text()), lambda line: None)
"""


def test_a_kill_leaves_nothing_that_reads_as_prepared(config, tmp_path):
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-c", KILLED, str(tmp_path / "config.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"  # all shards are written, only the stats are not
        process.send_signal(signal.SIGKILL)
    assert list(config.dir.glob(".text.*.making"))
    assert read_corpus_stats(config.dir / "text") is None
    assert prepare(config, quiet).fresh == ["text"]
    assert not list(config.dir.glob(".text.*.making"))


def test_two_at_once_make_it_once(config, tmp_path):
    (tmp_path / "config.json").write_text(config.model_dump_json())
    code = (
        "import sys; from pathlib import Path; from megadistill.data.config import DataConfig;"
        "from megadistill.data.prepare import prepare;"
        "config = DataConfig.model_validate_json(Path(sys.argv[1]).read_text());"
        "print(len(prepare(config, lambda line: None).fresh))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "config.json")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=60)[0].strip() for process in both) == ["0", "1"]
