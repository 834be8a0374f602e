"""Scores equal what a second implementation finds in the predictions that are kept: all of GLUE, and SQuAD."""

import json
import random
import re
import string

import numpy as np
import pytest

from megadistill.tasks.glue import SETS, GlueTask
from megadistill.tasks.squad import SquadTask
from megadistill.testing import task_files

MEASURED = {
    "cola": ["matthews"],
    "sst2": ["accuracy"],
    "mrpc": ["accuracy", "f1"],
    "stsb": ["pearson", "spearman"],
    "qqp": ["accuracy", "f1"],
    "mnli": ["accuracy"],
    "qnli": ["accuracy"],
    "rte": ["accuracy"],
    "wnli": ["accuracy"],
}
"""Wang et al. 2019, table 1."""


def ranks(values):
    return np.array([(np.sum(values < v) + np.sum(values <= v) + 1) / 2 for v in values])


def correlation(x, y):
    return np.corrcoef(x, y)[0, 1]


def f1(truth, predicted):
    right = np.sum(truth & predicted)
    return 2 * right / (truth.sum() + predicted.sum())


def written(folder, name, part, draw):
    """A file with random answers; returns these."""
    one = SETS[name]
    header = one.header or [*one.columns, one.label]
    truth = [draw.randint(0, 50) / 10 if not one.names else draw.randrange(len(one.names)) for _ in range(60)]
    told = [one.names[answer] if one.spelt else str(answer) for answer in truth]
    rows = [["text" if column != one.label else answer for column in header] for answer in told]
    lines = ["\t".join(row) for row in ([] if one.header else [header]) + rows]
    (folder / one.folder).mkdir(exist_ok=True)
    (folder / one.folder / f"{part}.tsv").write_text("\n".join(lines) + "\n")
    return np.array(truth)


@pytest.mark.parametrize("name", MEASURED)
def test_glue(tmp_path, name):
    draw, noise = random.Random(name), np.random.default_rng(len(name))
    tokenizer = str(task_files.tokenizer(tmp_path / "tokenizer"))
    task = GlueTask(kind="glue", name=name, folder=tmp_path, tokenizer=tokenizer, sequence_length=16)
    scores, wanted = {}, []
    assert len(task.dev_parts) == (2 if name == "mnli" else 1)
    for part in task.dev_parts:
        truth = written(tmp_path, name, part, draw)
        opened = task.open(part)
        logits = noise.normal(size=(60, task.head.outputs)).astype(np.float32)
        scores[part], shown = opened.score(list(logits))
        kept = json.loads(json.dumps(shown))
        predicted = np.array(kept if name == "stsb" else [SETS[name].names.index(label) for label in kept])
        definitions = {
            "accuracy": np.mean(truth == predicted),
            "f1": f1(truth == 1, predicted == 1),
            "matthews": correlation(truth, predicted),  # of two indicators
            "pearson": correlation(truth, predicted),
            "spearman": correlation(ranks(truth), ranks(predicted)),
        }
        assert scores[part] == {key: pytest.approx(definitions[key], abs=1e-9) for key in MEASURED[name]}
        wanted += [definitions[key] for key in MEASURED[name]]
    assert task.primary(scores) == pytest.approx(np.mean(wanted), abs=1e-9)


def words(text):
    """As SQuAD's scripts compare them, by other means."""
    kept = text.lower().translate({ord(mark): None for mark in string.punctuation})
    return [word for word in re.split(r"\s+", re.sub(r"(?<!\w)(?:the|an|a)(?!\w)", " ", kept)) if word]


def test_squad(tmp_path):
    files = task_files.squad(tmp_path / "squad", dev=40)
    tokenizer = str(task_files.tokenizer(tmp_path / "tokenizer"))
    task = SquadTask(kind="squad", tokenizer=tokenizer, **files, sequence_length=16, max_question=5, stride=2)
    opened, noise = task.open("dev"), np.random.default_rng(0)
    lengths = np.diff(opened.encoded.starts)
    scores, shown = opened.score([noise.normal(size=(length, 2)).astype(np.float32) for length in lengths])
    golds = {
        one["id"]: [answer["text"] for answer in one["answers"]]
        for paragraph in json.loads(files["dev"].read_text())["data"][0]["paragraphs"]
        for one in paragraph["qas"]
    }
    exact, overlap = [], []
    for kept in json.loads(json.dumps(shown)):
        ours = words(kept["answer"])
        each = []
        for gold in golds.pop(kept["id"]):
            left = words(gold)
            total = len(ours) + len(left)
            same = sum(left.remove(word) is None for word in ours if word in left)
            each.append((ours == words(gold), 2 * same / total if same else 0.0))
        exact.append(max(hit for hit, _ in each))
        overlap.append(max(share for _, share in each))
    assert golds == {}
    assert scores["exact_match"] == pytest.approx(100 * np.mean(exact), abs=1e-9)
    assert scores["f1"] == pytest.approx(100 * np.mean(overlap), abs=1e-9)
    assert task.primary({"dev": scores}) == scores["f1"] > 0
