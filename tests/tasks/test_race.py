"""RACE: both layouts, rows as published, one answer out of several rows, and bad files told with their place."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from megadistill.core.dist import World
from megadistill.core.errors import UserError
from megadistill.data.stream import Stream
from megadistill.evaluate.tasks import score_task
from megadistill.objectives.hard_ce import HardCE
from megadistill.objectives.kd_compat import KDCompat
from megadistill.objectives.logits_mse import LogitsMSE
from megadistill.objectives.pkd import PKD
from megadistill.objectives.soft_ce import SoftCE
from megadistill.tasks.race import RaceTask
from megadistill.tasks.rows import TaskRows
from megadistill.testing import task_files, tiny

SIZES = {"vocab_size": 128, "max_position_embeddings": 32, "initializer_range": 0.3}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("race")
    task_files.race(folder / "race")
    task_files.tokenizer(folder / "tokenizer")
    return folder


def task(files, folder="race", **fields):
    given = {"tokenizer": str(files / "tokenizer"), "sequence_length": 24, **fields}
    return RaceTask(kind="race", folder=files / folder, **given)


def rows_of(task, part="train"):
    return TaskRows(task.open(part).encoded, task.sequence_length)


def test_both_layouts_give_the_same_questions(files, tmp_path):
    original = task(files).questions("dev")
    assert len(original) == 16
    assert [question.level for question in original] == ["middle"] * 8 + ["high"] * 8
    lines = [json.loads(file.read_text()) for file in sorted((files / "race" / "dev").glob("*/*.txt"), reverse=True)]
    made = {"example_id": [], "article": [], "question": [], "options": [], "answer": []}
    for tree in lines:
        for question, options, answer in zip(tree["questions"], tree["options"], tree["answers"], strict=True):
            cells = (tree["id"], tree["article"], question, options, answer)
            for column, cell in zip(made.values(), cells, strict=True):
                column.append(cell)
    (tmp_path / "all").mkdir()
    pq.write_table(pa.table(made), tmp_path / "all" / "validation-00000-of-00001.parquet")
    hub = task(files, tmp_path).questions("dev")

    def facts(questions):
        return sorted((q.level, q.article, q.text, q.options, q.answer) for q in questions)

    assert facts(hub) == facts(original)
    shutil.copytree(tmp_path / "all", tmp_path / "high")
    assert len(task(files, tmp_path, level="high").questions("dev")) == 16
    assert {q.level for q in task(files, level="high").questions("dev")} == {"high"}


def test_rows_are_those_of_the_published_code(files):
    """The article, then question and option one after another; the longer side loses tokens until the row fits."""
    given = task(files, sequence_length=12)
    opened, questions = given.open("train"), given.questions("train")
    words = (files / "tokenizer" / "vocab.txt").read_text().split()
    number = {word: place for place, word in enumerate(words)}
    for place, question in enumerate(questions[:6]):
        for choice, option in enumerate(question.options):
            a = [number[word] for word in question.article.split()]
            b = [number[word] for word in f"{question.text} {option}".replace("_", "[UNK]").split()]
            while len(a) + len(b) > 12 - 3:
                (a if len(a) > len(b) else b).pop()
            wanted = [number["[CLS]"], *a, number["[SEP]"], *b, number["[SEP]"]]
            row = 4 * place + choice
            span = slice(opened.encoded.starts[row], opened.encoded.starts[row + 1])
            assert opened.encoded.tokens[span].tolist() == wanted
            assert opened.encoded.segments[span].tolist() == [1] * (len(a) + 2) + [2] * (len(b) + 1)
    assert opened.encoded.truncated > 0
    assert opened.encoded.counts.sum() == len(questions) == len(opened.encoded)


def test_a_question_is_never_split_and_comes_once_an_epoch(files):
    rows = rows_of(task(files))

    def steps(size, micro):
        streams = [Stream(rows, World(rank, size), 16, micro, seed=3) for rank in range(size)]
        batches = [[b for s in streams for b in s.take(step)] for step in range(3)]
        assert all(len(b.ids) == 4 * micro and b.choices == 4 for of_step in batches for b in of_step)
        assert all((b.targets == 4 * b.ids.shape[1] * torch.arange(micro)).all() for s in batches for b in s)
        return [sorted(row for b in of_step for row in b.rows.tolist()) for of_step in batches]

    alone = steps(1, 16)
    assert alone == steps(2, 4)
    assert sorted(row for step in alone for row in step) == list(range(4 * 48))


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "albert", "modernbert"])
def test_losses_are_over_choices_as_transformers_scores_them(files, family):
    rows = rows_of(task(files)).take(np.arange(5))
    head = task(files).head
    student, teacher = (tiny.task_model(family, head, seed=seed, **SIZES).eval() for seed in (0, 1))
    student.check_head()
    assert (student.answers, student.dims.vocabulary) == ("choice", 4)
    inputs = {"input_ids": rows.ids.view(5, 4, -1), "attention_mask": rows.mask.long().view(5, 4, -1)}
    if getattr(student.hf.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = (rows.segments - 1).clamp(min=0).view(5, 4, -1)
    ours, theirs = (model.hf(**inputs).logits for model in (student, teacher))
    answers = rows.labels[::4, 0]

    def term(objective):
        loss = objective.build(student.dims, teacher.dims)
        needs = getattr(loss, "needs", objective.needs())
        signals = student.signals(rows, needs.student_hidden), teacher.signals(rows, needs.teacher_hidden)
        return loss(*signals, rows)

    hard = term(HardCE(kind="hard_ce"))
    wanted = torch.nn.functional.cross_entropy(ours, answers, reduction="sum")
    torch.testing.assert_close(hard.sum, wanted, rtol=1e-4, atol=1e-5)
    soft = term(SoftCE(kind="soft_ce", temperature=5, scope="targets"))
    kl = torch.nn.functional.kl_div((ours / 5).log_softmax(-1), (theirs / 5).softmax(-1), reduction="sum")
    torch.testing.assert_close(soft.sum, 25 * kl, rtol=1e-4, atol=1e-5)
    compat = term(KDCompat(kind="kd_compat", original="pkd_mean", temperature=5, scope="targets"))
    torch.testing.assert_close(compat.sum / 5, 25 * kl / ours.numel(), rtol=1e-4, atol=1e-6)
    square = term(LogitsMSE(kind="logits_mse", scope="targets"))
    torch.testing.assert_close(square.sum, (ours - theirs).square().sum() / 4, rtol=1e-4, atol=1e-5)
    assert rows.counts().tolist()[1:] == [5, 20, 5]

    parameters = list(student.parameters())
    found, true = (torch.autograd.grad(loss, parameters, allow_unused=True) for loss in (hard.sum, wanted))
    assert sum(one is not None for one in found) > len(parameters) / 2
    for one, other in zip(found, true, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_patience_is_for_the_first_state_of_every_choice(files):
    rows = rows_of(task(files)).take(np.arange(3))
    student, teacher = (tiny.task_model("bert", task(files).head, layers, **SIZES) for layers in (2, 4))
    loss = PKD(kind="pkd").build(student.dims, teacher.dims)
    ours, theirs = student.signals(rows, frozenset({1})), teacher.signals(rows, frozenset({2}))
    term = loss(ours, theirs, rows)
    a, b = (torch.nn.functional.normalize(h[:, 0], dim=-1) for h in (ours.hidden[1], theirs.hidden[2]))
    assert term.count == "sequences"
    torch.testing.assert_close(term.sum / len(rows.ids), torch.nn.functional.mse_loss(a, b))


def test_it_is_scored_on_dev_and_test_and_says_what_it_answered(files, tmp_path):
    given, model = task(files), tiny.task_model("bert", task(files).head, **SIZES)
    scores = score_task(given, model, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "predictions-test.jsonl").read_text().splitlines()]
    truth = [q.answer for q in given.questions("test")]
    right = ["ABCD".index(line["answer"]) == answer for line, answer in zip(lines, truth, strict=True)]
    assert lines[0]["id"] == "middle0.txt-0"
    assert scores["score"] == scores["test/accuracy"] == np.mean(right)
    assert scores["test/accuracy_middle"] == np.mean(right[:8])
    alone = rows_of(given, "test").take(np.array([3]))
    with torch.no_grad():
        inputs = {"input_ids": alone.ids.unsqueeze(0), "attention_mask": alone.mask.long().unsqueeze(0)}
        best = int(
            model.eval().hf(**inputs, token_type_ids=(alone.segments - 1).clamp(min=0).unsqueeze(0)).logits.argmax()
        )
    assert lines[3]["answer"] == "ABCD"[best]


GOOD = {"answers": ["A"], "options": [["a", "b", "c", "d"]], "questions": ["who?"], "article": "a man", "id": "x"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"answers": ["A"],\n "options": }', r"high.0.txt:2: not JSON"),
        (json.dumps([1]), r"high.0.txt: not as RACE's files are"),
        (json.dumps({"article": "a"}), r"high.0.txt: not as RACE's files are\n  no 'questions'"),
        (json.dumps({**GOOD, "answers": ["A", "B"]}), r"high.0.txt: 1 questions, 1 options, 2 answers"),
        (json.dumps({**GOOD, "answers": ["E"]}), r"high.0.txt: questions\[0\]: 'E' is no answer"),
        (json.dumps({**GOOD, "answers": [None]}), r"high.0.txt: questions\[0\]: None is no answer"),
        (json.dumps({**GOOD, "options": [["a", "b"]]}), r"questions\[0\]: 2 option\(s\), and task.choices is 4"),
        (json.dumps({**GOOD, "options": [["a", "b", "c", 4]]}), r"questions\[0\]: 4 option\(s\)"),
        (json.dumps({**GOOD, "article": " "}), r"questions\[0\]: the article is empty"),
        (json.dumps({**GOOD, "questions": [7]}), r"questions\[0\]: no question"),
        (None, r"has no train set of RACE\n.*train/middle/\*.txt and all/train-\*.parquet"),
    ],
)
def test_what_is_wrong_with_a_file(files, tmp_path, text, message):
    if text is not None:
        (tmp_path / "train" / "high").mkdir(parents=True)
        (tmp_path / "train" / "high" / "0.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        task(files, tmp_path).questions("train")
