"""The published files: their sizes, and that SQuAD's windows lose no answer. Wants MEGADISTILL_DATA."""

import os
from pathlib import Path

import numpy as np
import pytest

from megadistill.tasks.glue import GlueTask
from megadistill.tasks.imdb import ImdbTask
from megadistill.tasks.squad import SquadTask

DATA = Path(os.environ.get("MEGADISTILL_DATA", "nowhere"))

pytestmark = pytest.mark.skipif(
    not (DATA / "glue").is_dir(), reason="MEGADISTILL_DATA does not name a folder with glue/"
)


@pytest.mark.parametrize(
    ("name", "train", "dev"),
    [("cola", 8551, 1043), ("sst2", 67349, 872), ("rte", 2490, 277), ("stsb", 5749, 1500), ("wnli", 635, 71)],
)
def test_glue_has_its_published_sizes(name, train, dev):
    task = GlueTask(kind="glue", name=name, folder=DATA / "glue", tokenizer="none")
    assert (len(task.examples("train")), len(task.examples("dev"))) == (train, dev)


def test_imdb_is_balanced():
    examples = ImdbTask(kind="imdb", folder=DATA / "imdb", tokenizer="none").examples("dev")
    assert sum(example.answer for example in examples) == len(examples) / 2
    assert not any("<br" in example.first for example in examples)


def test_labels_of_squads_windows_read_back_as_the_answers():
    squad = DATA / "squad-v1.1"
    task = SquadTask(
        kind="squad",
        train=squad / "train-subset.json",
        dev=squad / "dev-half.json",
        tokenizer=str(DATA / "tokenizers" / "bert-base-uncased"),
        max_train_examples=1000,
    )
    opened = task.open("train")
    outputs = []
    for length, (start, end) in zip(np.diff(opened.encoded.starts), opened.encoded.answers.astype(int), strict=True):
        logits = np.zeros((length, 2), np.float32)
        logits[start, 0] = logits[end, 1] = 9
        outputs.append(logits)
    scores, _ = opened.score(outputs)
    # what is left are answers that begin or end inside a token, as in "1990s", and those of more than 30 tokens
    assert scores["exact_match"] > 98
    assert scores["f1"] > 99
