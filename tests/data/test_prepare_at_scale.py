"""Prepare with many files: one result from any number of processes, shares and kills; what it drops; what it tells."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from megadistill.core.errors import UserError
from megadistill.core.files import sha256_file
from megadistill.data import encode, workers
from megadistill.data.config import DataConfig
from megadistill.data.contamination import Contamination, Decontaminate
from megadistill.data.prepare import prepare
from megadistill.data.reader import Shards
from megadistill.data.workers import Progress
from megadistill.testing.processes import die

FILES = 12


def quiet(line):
    pass


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, by its content."""
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def config(tmp_path, tokenizer_folder, documents, monkeypatch):
    """12 files of 20 documents, each a task of its own; the first document of every file is also in all others."""
    monkeypatch.setattr(encode, "TASK_BYTES", 1)
    for number in range(FILES):
        texts = [*documents(1, seed=999), *documents(19, seed=number)]
        (tmp_path / f"{number:02d}.txt").write_text("\n".join(texts))
    return DataConfig.model_validate(
        {
            "dir": tmp_path / "shards",
            "tokenizer": str(tokenizer_folder),
            "sequence_length": 16,
            "held_out": {"fraction": 0.1},
            "corpora": [{"kind": "text", "files": [str(tmp_path / "*.txt")], "document": "line"}],
        }
    )


def test_the_result_does_not_depend_on_processes_or_shares(config, changed, tmp_path, monkeypatch):
    stats = prepare(config, quiet, workers=1).corpora[0]
    one = tree(config.dir / "text")
    assert (stats.documents, stats.duplicates) == (19 * FILES + 1, FILES - 1)

    monkeypatch.setattr(workers, "SMALL", 0)
    several = changed(config, dir=tmp_path / "several")
    assert prepare(several, quiet, workers=2).corpora[0] == stats
    assert tree(several.dir / "text") == one

    shares, lines = changed(config, dir=tmp_path / "shares"), []
    for share in (2, 0):
        prepared = prepare(shares, lines.append, workers=1, share=(share, 3))
        assert prepared.unfinished == ["text"]
        assert not (shares.dir / "text").exists()
    assert "other shares have the rest" in lines[-1]
    assert prepare(shares, quiet, workers=1, share=(1, 3)).fresh == ["text"]
    assert tree(shares.dir / "text") == one
    assert prepare(shares, quiet, workers=1, share=(2, 3)).fresh == []


def test_a_limit_over_many_files_reads_no_more_than_it_needs(config, changed, monkeypatch):
    corpus = config.corpora[0].model_dump() | {"max_documents": 30}
    read = []
    original = type(config.corpora[0]).documents

    def documents(self, source):
        read.append(source.name)
        return original(self, source)

    monkeypatch.setattr(type(config.corpora[0]), "documents", documents)
    stats = prepare(changed(config, corpora=[corpus]), quiet, workers=1).corpora[0]
    assert (stats.documents, stats.duplicates) == (29, 1)
    assert len(read) == 2


KILLS = """
import os, random, signal, sys, time
from pathlib import Path
from megadistill.data import encode, prepare, shards, workers
from megadistill.data.config import DataConfig
from megadistill.data.contamination import Contamination, Decontaminate

encode.TASK_BYTES, shards.ROWS_PER_MEMBER, shards.SHARD_BYTES = 1, 16, 4000
config = DataConfig.model_validate_json(Path(sys.argv[1]).read_text())
draw = random.Random(0)

def start(folder):
    pid = os.fork()  # everything is imported: a new process each time would take seconds
    if not pid:
        prepare.prepare(config.model_copy(update={"dir": folder}), lambda line: None, workers=1)
        os._exit(0)
    return pid

began = time.perf_counter()
assert os.waitpid(start(config.dir / "whole"), 0)[1] == 0
whole = time.perf_counter() - began
kills = [0]  # of each folder: when one is finished in spite of them, the next begins
while sum(kills) < 20:
    pid = start(config.dir / f"killed-{len(kills)}")
    time.sleep(draw.uniform(0.05, 0.3) * whole)
    os.kill(pid, signal.SIGKILL)
    if os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
        kills[-1] += 1
    else:
        kills.append(0)
assert os.waitpid(start(config.dir / f"killed-{len(kills)}"), 0)[1] == 0
"""


def test_twenty_kills_end_in_the_same_bytes(config, tmp_path, documents):
    for number in range(24):
        (tmp_path / f"{number:02d}.txt").write_text("\n".join(documents(40, seed=number)))
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, "-c", KILLS, str(tmp_path / "config.json")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    whole = tree(config.dir / "whole" / "text")
    assert sum(name.endswith(".tar") for name in whole) > 40
    for folder in config.dir.glob("killed-*"):
        assert tree(folder / "text") == whole
        assert sorted(path.name for path in folder.iterdir()) == [".text.lock", "text"]


def test_a_worker_that_the_system_kills_is_told(config, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "SMALL", 0)
    team = workers.Workers(2)
    jobs = [(number, 1, ()) for number in range(4)]
    with pytest.raises(UserError, match=r"a process was killed(.|\n)*fewer --workers"):
        list(team.each(die, jobs, "text: reading", quiet))
    team.close()


def test_workers_leave_with_who_started_them(tmp_path):
    code = """
import sys
from pathlib import Path
from megadistill.data import workers
from megadistill.testing.processes import linger
workers.SMALL = 0
list(workers.Workers(2).each(linger, [(n, 1, (Path(sys.argv[1]),)) for n in range(4)], "", print))
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) as process:
        until(lambda: len(list(tmp_path.iterdir())) == 2)
        process.kill()
    until(lambda: not any(Path("/proc", path.name).exists() for path in tmp_path.iterdir()))


def until(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_more_files_than_may_be_open_at_once(config):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 10, before[1]))
    try:
        assert prepare(config, quiet, workers=1).corpora[0].documents == 19 * FILES + 1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_share_leaves_what_others_still_read_to_them(config):
    import fcntl

    prepare(config, quiet, workers=1, share=(0, 2))
    lines = []
    with open(config.dir / ".text.lock") as another:
        fcntl.flock(another, fcntl.LOCK_SH)
        assert prepare(config, lines.append, workers=1, share=(1, 2)).unfinished == ["text"]
    assert lines[-1].endswith("the last of them finishes")
    assert prepare(config, quiet, workers=1, share=(0, 2)).fresh == ["text"]


def test_ids_that_are_damaged_while_they_wait_are_made_again(config, changed, tmp_path):
    prepare(config, quiet, workers=1)
    other = changed(config, dir=tmp_path / "damaged")
    prepare(other, quiet, workers=1, share=(0, 2))
    ids = next((tmp_path / "damaged").glob(".text.*.making")) / "encoded" / "000002.tokens"
    content = bytearray(ids.read_bytes())
    content[10] ^= 1
    ids.write_bytes(content)
    with pytest.raises(UserError, match=r"000002.npz is damaged(.|\n)*start `prepare` again"):
        prepare(other, quiet, workers=1, share=(1, 2))
    assert prepare(other, quiet, workers=1).fresh == ["text"]
    assert tree(other.dir / "text") == tree(config.dir / "text")


def test_near_duplicates_go_and_the_first_stays(config, changed, tmp_path, documents):
    base = documents(3, seed=50, words=200)
    close = [" ".join([*text.split()[:-1], "ban"]) for text in base]
    (tmp_path / "00.txt").write_text("\n".join(base))
    (tmp_path / "01.txt").write_text("\n".join(close))
    options = {"near_duplicates": {"threshold": 0.6}}
    stats = prepare(changed(config, **options), quiet, workers=1).corpora[0]
    assert stats.near_duplicates == 3
    assert stats.duplicates == FILES - 3
    kept = set(np.concatenate([_tokens(config, part) for part in ("train", "held_out")]).tolist())
    assert len(kept) > 20
    assert prepare(config, quiet, workers=1).corpora[0].near_duplicates == 0


def _tokens(config, part):
    shards = Shards(config.dir / "text" / part)
    tokens, segments = shards.rows(np.arange(len(shards)))
    return tokens[segments > 0]


@pytest.mark.parametrize("name", ["test.txt", "test.tsv", "test.json", "test.jsonl", "test.parquet"])
def test_documents_that_share_text_with_evaluation_files_go(config, changed, tmp_path, documents, name):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "eval").mkdir()
    path = tmp_path / "eval" / name
    stolen = " ".join(documents(19, seed=3)[7].upper().split()[2:17])  # 15 of its words, in other case
    if name.endswith("parquet"):
        pq.write_table(pa.table({"n": [1], "text": [stolen]}), path)
    else:
        whole = {"txt": stolen, "tsv": f"1\tx y\t{stolen}\n", "jsonl": json.dumps({"q": [stolen]}) + "\n\n"}
        path.write_text(whole.get(name.rpartition(".")[2], json.dumps([{"data": {"context": stolen}}], indent=1)))
    against = changed(config, decontaminate={"files": [str(path)]})
    stats = prepare(against, quiet, workers=1).corpora[0]
    assert stats.contaminated == 1
    assert stats.documents == 19 * FILES
    path.write_text('["other"]' if "json" in name else "other")
    if not name.endswith("parquet"):
        assert prepare(against, quiet, workers=1).corpora[0].contaminated == 0  # its content is in the key


RUN = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (lambda pa: pa.large_string(), RUN),
        (lambda pa: pa.string_view(), RUN),
        (lambda pa: pa.dictionary(pa.int32(), pa.string()), RUN),
        (lambda pa: pa.list_(pa.string()), ["a", RUN]),
        (lambda pa: pa.map_(pa.string(), pa.string()), [("text", RUN)]),
        (lambda pa: pa.struct({"n": pa.int64(), "texts": pa.large_list(pa.large_string())}), {"n": 1, "texts": [RUN]}),
    ],
)
def test_every_text_of_a_parquet_evaluation_file_is_known(tmp_path, kind, value):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "test.parquet"
    values = pa.array([value, None], kind(pa))
    pq.write_table(pa.table({"n": [1, 2], "picture": [b"1", b"2"], "text": values}), path)
    assert Contamination(Decontaminate(files=[str(path)])).found_in(f"so: {RUN.upper()}!")


@pytest.mark.parametrize("name", ["test.txt", "test.jsonl", "test.parquet"])
def test_an_evaluation_file_without_text_is_refused(tmp_path, name):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.table({"n": [1], "text": [RUN.encode()], "empty": [""]}), path)
    else:
        path.write_text('{"n": 1}\n' if name.endswith("jsonl") else "\n \n")
    with pytest.raises(UserError, match=f"{path} holds no text(.|\n)*data.decontaminate: files"):
        Contamination(Decontaminate(files=[str(path)]))


def test_statistics_tell_what_there_is(config, documents):
    prepare(config, quiet, workers=1)
    stats = json.loads((config.dir / "text" / "stats.json").read_text())
    lengths = [len(text.split()) for n in range(FILES) for text in documents(19, seed=n)]
    lengths.append(len(documents(1, seed=999)[0].split()))
    expected = {"16-31": sum(n < 32 for n in lengths), "32-63": sum(n >= 32 for n in lengths)}
    assert stats["document_lengths"] == expected
    assert stats["unknown_share"] == 0
    rows = stats["train"]["rows"] * 16
    assert stats["train"]["padding_share"] == pytest.approx(1 - stats["train"]["tokens"] / rows, abs=1e-6)


def test_progress_tells_the_share_and_the_time_left(monkeypatch):
    clock = iter([0.0, *[30.0] * 9])
    monkeypatch.setattr(workers.time, "monotonic", lambda: next(clock))
    lines = []
    progress = Progress("wiki: reading", 4, 1000, lines.append)
    progress.tell(1000)
    progress.ended(500)
    progress.tell(200)  # of the next file: two characters are a byte, so 100 of 1000
    assert progress.share() == pytest.approx(0.6)
    assert lines[0].startswith("wiki: reading: 0 of 4 tasks, 0 MB of text, 0.0 MB/s")
    assert progress.line() == "wiki: reading: 1 of 4 tasks, 0 MB of text, 0.0 MB/s, 60%, 20 s left"


def test_what_is_there_is_kept_where_its_source_cannot_be_seen(config, changed, monkeypatch):
    prepare(config, quiet, workers=1)

    def unseen(self):
        raise UserError("no network")

    monkeypatch.setattr(type(config.corpora[0]), "sources", unseen)
    lines = []
    assert prepare(config, lines.append, workers=1).fresh == []
    assert "not checked for changes: no network" in lines[0]
    with pytest.raises(UserError, match="no network"):
        prepare(changed(config, sequence_length=32), quiet, workers=1)
