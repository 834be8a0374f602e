"""Tasks with one answer a row: formats, frames, and bad lines told with file and line."""

import itertools
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.core.files import atomic_write
from megadistill.data.stream import HeldOut, Stream
from megadistill.data.tokenization import load_tokenizer
from megadistill.export.hf import write_tokenizer
from megadistill.models.heads import TaskHead
from megadistill.tasks.encoding import Example, cut, encode, frame
from megadistill.tasks.glue import SETS, GlueTask
from megadistill.tasks.imdb import ImdbTask
from megadistill.tasks.rows import TaskRows
from megadistill.tasks.text import TextTask
from megadistill.testing import task_files, tiny

_PARSES = "sentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse"
ORIGINAL = {
    "cola": "gj04\t1\t\tThe man sees her.\nx\t0\t*\tMan the her sees.\n",
    "sst2": "sentence\tlabel\na good film \t1\na bad film \t0\n",
    "mrpc": '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t1\t2\tHe said "go\tShe went\n0\t1\t2\ta\tb\n',
    "stsb": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    "0\tg\tf\t2012\t1\tn\tn\tone\ttwo\t3.250\n",
    "qqp": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\twho?\twho is?\t1\n",
    "mnli": f"index\tpromptID\tpairID\tgenre\t{_PARSES}\tsentence1\tsentence2\tlabel1\tgold_label\n"
    "0\t1\t2\tg\t( one )\t( two )\t(ROOT)\t(ROOT)\tone\ttwo\tneutral\tcontradiction\n",
    "qnli": "index\tquestion\tsentence\tlabel\n0\twho?\tman.\tnot_entailment\n",
    "rte": "index\tsentence1\tsentence2\tlabel\n0\tone\ttwo\tentailment\n",
    "wnli": "index\tsentence1\tsentence2\tlabel\n0\tone\ttwo\t1\n",
}
"""As in GLUE's own training files."""
ORIGINAL_DEV = {
    "mnli": f"index\tpromptID\tpairID\tgenre\t{_PARSES}\tsentence1\tsentence2\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5"
    "\tgold_label\n0\t1\t2\tg\t( one )\t( two )\t(ROOT)\t(ROOT)\tone\ttwo"
    "\tneutral\tcontradiction\tcontradiction\tneutral\tcontradiction\tcontradiction\n",
}
"""Where the dev files have other columns."""
HUB = {
    "cola": {"sentence": "The man sees her.", "label": 1, "idx": 0},
    "sst2": {"sentence": "a good film ", "label": 1, "idx": 0},
    "mrpc": {"sentence1": 'He said "go', "sentence2": "She went", "label": 1, "idx": 0},
    "stsb": {"sentence1": "one", "sentence2": "two", "label": 3.25, "idx": 0},
    "qqp": {"question1": "who?", "question2": "who is?", "label": 1, "idx": 0},
    "mnli": {"premise": "one", "hypothesis": "two", "label": 2, "idx": 0},
    "qnli": {"question": "who?", "sentence": "man.", "label": 1, "idx": 0},
    "rte": {"sentence1": "one", "sentence2": "two", "label": 0, "idx": 0},
    "wnli": {"sentence1": "one", "sentence2": "two", "label": 1, "idx": 0},
}
"""The first row of nyu-mll/glue's parquet files, columns in their order."""
FIRST = {
    "cola": ("The man sees her.", None, 1),
    "sst2": ("a good film ", None, 1),
    "mrpc": ('He said "go', "She went", 1),
    "stsb": ("one", "two", 3.25),
    "qqp": ("who?", "who is?", 1),
    "mnli": ("one", "two", 2),
    "qnli": ("who?", "man.", 1),
    "rte": ("one", "two", 0),
    "wnli": ("one", "two", 1),
}
PARTS = {"mnli": (("dev_matched", "validation_matched"), ("dev_mismatched", "validation_mismatched"))}


def glue(folder, name, **options):
    return GlueTask(kind="glue", name=name, folder=folder, tokenizer="none", **options)


@pytest.mark.parametrize("name", FIRST)
def test_both_layouts_of_glue_give_the_same_examples(tmp_path, name):
    original, hub = tmp_path / "original" / SETS[name].folder, tmp_path / "hub" / name
    original.mkdir(parents=True)
    hub.mkdir(parents=True)
    parts = (("train", "train"), *PARTS.get(name, (("dev", "validation"),)))
    assert glue(tmp_path, name).dev_parts == tuple(part for part, _ in parts[1:])
    row = pa.table({column: [value] for column, value in HUB[name].items()})
    for part, split in parts:
        text = ORIGINAL[name] if part == "train" else ORIGINAL_DEV.get(name, ORIGINAL[name])
        (original / f"{part}.tsv").write_text(text, encoding="utf-8")
        pq.write_table(row, hub / f"{split}-00000-of-00001.parquet")
    for part, split in parts:
        for root, file in ((original, f"{part}.tsv:"), (hub, f"{split}-00000-of-00001.parquet:row ")):
            first = glue(root.parent, name).examples(part)[0]
            assert (first.first, first.second, first.answer) == FIRST[name]
            number = 0 if root == hub else 1 if name == "cola" else 2
            assert first.where == f"{root}/{file}{number}"


def test_the_hubs_test_sets_have_no_labels(tmp_path):
    (tmp_path / "mnli").mkdir()
    unlabelled = pa.table({column: [value] for column, value in (HUB["mnli"] | {"label": -1}).items()})
    pq.write_table(unlabelled, tmp_path / "mnli" / "validation_matched-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"validation_matched.*parquet:row 0: -1 is no label"):
        glue(tmp_path, "mnli").examples("dev_matched")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentence\tlabel\na film\t1\nno label here\n", r"train.tsv:3: 1 column\(s\), and the table has 2"),
        ("sentence\tlabel\na film\t2\n", r"train.tsv:2: '2' is no label"),
        ("sentence\tlabels\na film\t1\n", r"train.tsv:2: None is no label"),
        ("text\tlabel\na film\t1\n", r"train.tsv:2: no text in column 'sentence'"),
        ("sentence\tlabel\n", r"train.tsv has no examples"),
        ("sentence\tsentence\tlabel\na\tb\t1\n", r"train.tsv:1: two columns 'sentence'"),
        (b"sentence\tlabel\ncaf\xe9\t1\n", r"train.tsv is not UTF-8"),
        (None, r"has no train set of sst2"),
    ],
)
def test_a_bad_line_is_told_with_its_file_and_number(tmp_path, text, message):
    (tmp_path / "SST-2").mkdir()
    if text is not None:
        with atomic_write(tmp_path / "SST-2" / "train.tsv", "wb") as handle:
            handle.write(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        glue(tmp_path, "sst2").examples("train")


def test_short_lines_are_skipped_where_that_is_asked_for_and_odd_separators_end_no_line(tmp_path):
    (tmp_path / "SST-2").mkdir()
    lines = "sentence\tlabel\na\u2028b\x85c\t1\nshort\n\tx\r\na\t0\r\n"
    (tmp_path / "SST-2" / "train.tsv").write_bytes(lines.replace("\tx\r\n", "").encode())
    found = glue(tmp_path, "sst2", skip_short_lines=True).examples("train")
    assert [(e.first, e.answer) for e in found] == [("a\u2028b\x85c", 1), ("a", 0)]


@pytest.mark.parametrize("bad", ["", "five", "nan"])
def test_a_rating_must_be_a_number(tmp_path, bad):
    (tmp_path / "STS-B").mkdir()
    (tmp_path / "STS-B" / "dev.tsv").write_text(ORIGINAL["stsb"].replace("3.250", bad))
    with pytest.raises(UserError, match=r"dev.tsv:2: .* is no number"):
        glue(tmp_path, "stsb").examples("dev")


# ---------------------------------------------------------------------------------------------- text, imdb


def text_task(folder, name, lines, **options):
    (folder / name).write_text(lines, encoding="utf-8")
    files = {"train": [str(folder / name)], "dev": [str(folder / name)]}
    return TextTask(kind="text", tokenizer="none", **files, **options)


def test_every_format_of_text_reads_alike(tmp_path):
    rows = [("a, b", "cat"), ("c", "dog"), ("d", "cat")]
    made = [
        text_task(tmp_path, "a.csv", 'text,label\n"a, b",cat\n\nc,dog\nd,cat\n\n'),
        text_task(tmp_path, "a.tsv", "text\tlabel\na, b\tcat\n\nc\tdog\nd\tcat\n\n"),
        text_task(tmp_path, "a.jsonl", "".join(json.dumps({"text": t, "label": c}) + "\n" for t, c in rows)),
    ]
    numbered = "".join(json.dumps({"t": t, "c": ["cat", "dog"].index(c)}) + "\n" for t, c in rows)
    made.append(text_task(tmp_path, "b.jsonl", numbered, text="t", label="c", labels=["cat", "dog"]))
    pq.write_table(pa.table({"text": [t for t, _ in rows], "label": [c for _, c in rows]}), tmp_path / "a.parquet")
    made.append(made[0].model_copy(update={"train": [str(tmp_path / "*.parquet")]}))
    for task in made:
        assert task.head.names == ("cat", "dog")
        assert [(e.first, e.answer) for e in task.examples("train")] == [("a, b", 0), ("c", 1), ("d", 0)]


def test_labels_that_are_numbers_are_names_not_places(tmp_path):
    task = text_task(tmp_path, "a.jsonl", "".join(json.dumps({"text": "x", "label": n}) + "\n" for n in (3, 1, 2)))
    assert task.head.names == ("1", "2", "3")
    assert [e.answer for e in task.examples("train")] == [2, 0, 1]
    with pytest.raises(UserError, match="0 is no label"):
        text_task(tmp_path, "b.jsonl", '{"text": "x", "label": 0}\n', labels=["1", "2"]).examples("dev")


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("a.csv", "text,label\nx,cat,1\n", r"a.csv:2: 3 column\(s\)"),
        ("a.csv", 'text,label\n"x,cat\n', r"a.csv:2: not CSV"),
        ("a.csv", "text,text,label\nx,y,cat\n", r"a.csv:1: two columns 'text'"),
        ("a.jsonl", '{"text": "x", "label": "cat"}\n{"text": \n', r"a.jsonl:2: not JSON"),
        ("a.jsonl", "[1]\n", r"a.jsonl:1: no object"),
        ("a.jsonl", '{"text": "x", "labe": 1}\n', r"task.label: .*a.jsonl has no column 'label'(.|\n)*mean 'labe'"),
        ("a.jsonl", '{"text": "x", "label": "cat"}\n{"text": "x"}\n', r"a.jsonl:2: no label in column 'label'"),
        ("a.jsonl", '{"text": "x", "label": "cat"}\n', "the labels are all the same"),
        ("a.txt", "x\n", "ending that is not known"),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path, name, lines, message):
    with pytest.raises(UserError, match=message):
        text_task(tmp_path, name, lines).examples("train")


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("dev.tsv", "text\tlabel\n", "task.dev has no examples"),
        ("dev.jsonl", "", "task.dev has no examples"),
        ("dev.csv", "text,label\nx,bird\n", r"dev.csv:2: 'bird' is no label"),  # which training knows nothing of
    ],
)
def test_a_dev_set_must_have_examples_with_the_labels_of_training(tmp_path, name, lines, message):
    task = text_task(tmp_path, "train.tsv", "text\tlabel\nx\tcat\ny\tdog\n")
    (tmp_path / name).write_text(lines)
    with pytest.raises(UserError, match=message):
        task.model_copy(update={"dev": [str(tmp_path / name)]}).examples("dev")


def test_a_metric_must_suit_the_answers(tmp_path):
    with pytest.raises(ValueError, match="pearson cannot measure classes"):
        text_task(tmp_path, "a.tsv", "", metrics=["pearson"])
    three = "text\tlabel\na\tx\nb\ty\nc\tz\n"
    with pytest.raises(ValueError, match="f1 is of two classes, and there are 3; use macro_f1"):
        text_task(tmp_path, "a.tsv", three, metrics=["f1"], labels=["x", "y", "z"])
    with pytest.raises(UserError, match=r"task.metrics: f1 is of two classes, and there are 3(.|\n)*use macro_f1"):
        text_task(tmp_path, "a.tsv", three, metrics=["f1"]).head  # noqa: B018
    assert text_task(tmp_path, "a.tsv", three, metrics=["macro_f1"]).head.outputs == 3


def test_imdb_in_both_layouts(tmp_path):
    pq.write_table(pa.table({"text": ["a<br /><br />b", "c"], "label": [0, 1]}), tmp_path / "train.parquet")
    for label, text in (("neg", "a<br /><br />b"), ("pos", "c")):
        (tmp_path / "acl" / "train" / label).mkdir(parents=True)
        (tmp_path / "acl" / "train" / label / "0_1.txt").write_text(text)
    for folder in (tmp_path, tmp_path / "acl"):
        task = ImdbTask(kind="imdb", folder=folder, tokenizer="none")
        assert [(e.first, e.answer) for e in task.examples("train")] == [("a  b", 0), ("c", 1)]
        with pytest.raises(UserError, match="no test set of IMDb"):
            task.examples("dev")
    nothing = pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())})
    pq.write_table(nothing, tmp_path / "test.parquet")
    with pytest.raises(UserError, match="test has no examples"):
        ImdbTask(kind="imdb", folder=tmp_path, tokenizer="none").examples("dev")


# ---------------------------------------------------------------------------------------------- rows


def test_rows_are_framed_and_cut_as_berts_tokenizer_does(tmp_path):
    from transformers import BertTokenizerFast

    folder = task_files.tokenizer(tmp_path / "tokenizer")
    theirs, ours = BertTokenizerFast(str(folder / "vocab.txt")), load_tokenizer(str(folder))
    draw = random.Random(0)
    for _ in range(200):
        first, second = (" ".join(draw.choices(task_files.PLAIN, k=draw.randint(1, 12))) for _ in range(2))
        for pair in (None, second):
            length = draw.randint(8, 20)
            wanted = theirs(first, pair, truncation="longest_first", max_length=length)
            a, b = ours.encode(first), None if pair is None else ours.encode(pair)
            i, j = cut(len(a), None if b is None else len(b), length, ours.special)
            row, split = frame(a[:i], None if b is None else b[:j], ours.special)
            assert row == wanted["input_ids"], (len(a), b and len(b), length)
            assert [int(place >= split) for place in range(len(row))] == wanted["token_type_ids"]


def test_pairs_of_roberta_and_its_like_have_two_separators(tmp_path):
    """From a tokenizer.json, which says how it frames, and from vocab.json with merges.txt, which do not."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AutoTokenizer, RobertaTokenizerFast

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    learnt = ByteLevelBPETokenizer()
    learnt.train_from_iterator([" ".join(task_files.WORDS)] * 3, vocab_size=400, special_tokens=special)
    for name in ("whole", "plain"):
        (tmp_path / name).mkdir()
    learnt.save_model(str(tmp_path / "plain"))
    theirs = RobertaTokenizerFast(*(str(tmp_path / "plain" / name) for name in ("vocab.json", "merges.txt")))
    theirs.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "tokenizer.json").exists()
    bert = load_tokenizer(str(task_files.tokenizer(tmp_path / "bert")))
    assert bert.pair_separators == 1
    for name in ("whole", "plain"):
        ours = load_tokenizer(str(tmp_path / name))
        assert ours.pair_separators == 2
        for length in (9, 30):
            example = Example("f:1", "the film was good", "a man sees her", 1.0)
            row = encode([example], "label", 2, ours, length)
            wanted = theirs(example.first, example.second, truncation="longest_first", max_length=length)
            assert row.tokens.tolist() == wanted["input_ids"]
        write_tokenizer(ours, 30, tmp_path / f"exported-{name}", typed=False)
        exported = AutoTokenizer.from_pretrained(tmp_path / f"exported-{name}")
        assert exported("the film", "was good")["input_ids"] == theirs("the film", "was good")["input_ids"]
        assert not any(exported("the film", "was good", return_token_type_ids=True)["token_type_ids"])
    models = {name: tiny.task_model(name, TaskHead("label", 2)) for name in ("roberta", "bert")}
    told = {name: [] for name in models}
    batch = tiny.batch(2)
    for name, model in models.items():
        body = model.hf.base_model
        handle = body.register_forward_pre_hook(
            lambda _, __, given, name=name: told[name].extend(given), with_kwargs=True
        )
        model.signals(batch, frozenset())
        handle.remove()
    assert ("token_type_ids" in told["bert"], "token_type_ids" in told["roberta"]) == (True, False)


@pytest.fixture
def sst2(tmp_path):
    return GlueTask(
        kind="glue",
        name="sst2",
        folder=task_files.sst2(tmp_path / "glue"),
        tokenizer=str(task_files.tokenizer(tmp_path / "tokenizer")),
        sequence_length=16,
    )


def test_ranks_are_views_of_one_order_and_every_example_comes_once_an_epoch(sst2):
    rows = TaskRows(sst2.open("train").encoded, sst2.sequence_length)

    def steps(size, micro):
        streams = [Stream(rows, World(rank, size), 16, micro, seed=3) for rank in range(size)]
        return [sorted(i for s in streams for b in s.take(step) for i in b.rows.tolist()) for step in range(8)]

    alone = steps(1, 16)
    assert alone == steps(2, 4) == steps(4, 2)
    for epoch in (alone[:4], alone[4:]):
        assert sorted(row for step in epoch for row in step) == list(range(64))
    assert alone[0] != alone[4]
    held_out = [list(HeldOut(rows).batches(5, 0, World(rank, 2), 20)) for rank in range(2)]
    assert [sum(len(b.ids) for b in one) for one in held_out] == [10, 10]


def test_batches_hold_the_rows_whatever_else_is_in_them(sst2):
    rows = TaskRows(sst2.open("train").encoded, sst2.sequence_length)
    whole = rows.take(np.arange(64))
    for number in (0, 7, 63):
        alone = rows.take(np.array([number]))
        width = int(alone.mask.sum())
        assert alone.ids.shape[1] <= whole.ids.shape[1] <= 16
        assert whole.ids[number, :width].tolist() == alone.ids[0, :width].tolist()
        assert int(whole.mask[number].sum()) == width
        assert int(whole.labels[number, 0]) == number % 2
    assert len(whole.targets) == 64
    assert rows.counts.tolist() == [32, 32]
    assert rows.fingerprint(0) != rows.fingerprint(1)
    few = sst2.model_copy(update={"max_train_examples": 10})
    assert len(few.open("train").encoded) == 10
    assert len(few.open("dev").encoded) == 32


def test_a_steps_short_rows_are_padded_with_short_ones(sst2):
    rows = TaskRows(sst2.open("train").encoded, sst2.sequence_length)
    stream = Stream(rows, World(0, 1), 32, 8, seed=3)
    parts, whole = stream.take(0), rows.batch(stream.places(0), 3, "targets")
    assert sorted(row for part in parts for row in part.rows.tolist()) == sorted(whole.rows.tolist())
    last = {max(part.ids.shape[1] for part in stream.take(n)) == stream.take(n)[-1].ids.shape[1] for n in range(8)}
    assert last == {True, False}, "the longest are not always the last"
    parts.sort(key=lambda part: int(part.mask.sum()))
    lengths = [part.mask.sum(1).tolist() for part in parts]
    assert all(max(shorter) <= min(longer) for shorter, longer in itertools.pairwise(lengths))
    assert [part.ids.shape[1] for part in parts] == [min(-(-max(some) // 8) * 8, 16) for some in lengths]
    assert parts[0].ids.shape[1] < whole.ids.shape[1]
