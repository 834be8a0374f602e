"""Metrics equal their definitions, written out; macro and spread are what papers report."""

import math
import random

import numpy as np
import pytest

from megadistill.core.errors import UserError
from megadistill.tasks import metrics


def matthews(truth, predicted):
    """The correlation of two indicator variables (Matthews 1975), from the four counts."""
    pairs = list(zip(truth, predicted, strict=True))
    tp, tn, fp, fn = (pairs.count(pair) for pair in ((1, 1), (0, 0), (0, 1), (1, 0)))
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return (tp * tn - fp * fn) / below if below else 0.0


def f1(truth, predicted):
    pairs = list(zip(truth, predicted, strict=True))
    tp, fp, fn = (pairs.count(pair) for pair in ((1, 1), (0, 1), (1, 0)))
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def pearson(x, y):
    mx, my = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return above / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def spearman(x, y):
    def ranks(values):
        return [(sum(v < u for v in values) + sum(v <= u for v in values) + 1) / 2 for u in values]

    return pearson(ranks(x), ranks(y))


def accuracy(truth, predicted):
    return sum(a == b for a, b in zip(truth, predicted, strict=True)) / len(truth)


@pytest.mark.parametrize("seed", range(5))
def test_they_equal_their_definitions(seed):
    draw = random.Random(seed)
    truth = [draw.randrange(2) for _ in range(97)]
    predicted = [t if draw.random() < 0.7 else 1 - t for t in truth]
    for name, definition in (("matthews", matthews), ("f1", f1), ("accuracy", accuracy)):
        found = metrics.METRICS[name](np.array(truth), np.array(predicted))
        assert found == pytest.approx(definition(truth, predicted), abs=1e-12), name
    three = [draw.randrange(3) for _ in truth]
    shuffled = [t if draw.random() < 0.5 else draw.randrange(3) for t in three]
    each = [f1([t == c for t in three], [p == c for p in shuffled]) for c in range(3)]
    found = metrics.macro_f1(np.array(three), np.array(shuffled))
    assert found == pytest.approx(sum(each) / 3, abs=1e-12)
    rated = [round(draw.random() * 5, 1) for _ in range(97)]  # with ties
    given = [draw.gauss(r, 1) if draw.random() < 0.8 else 2.0 for r in rated]
    for name, definition in (("pearson", pearson), ("spearman", spearman)):
        found = metrics.METRICS[name](np.array(rated), np.array(given))
        assert found == pytest.approx(definition(rated, given), abs=1e-9), name


@pytest.mark.parametrize(
    ("name", "truth", "predicted", "score"),
    [
        ("matthews", [0, 1, 1], [1, 1, 1], 0.0),  # one class only
        ("f1", [0, 0], [0, 0], 0.0),
        ("pearson", [1.0, 2.0], [3.0, 3.0], 0.0),  # a constant rating
        ("spearman", [1.0, 1.0], [3.0, 4.0], 0.0),
    ],
)
def test_what_is_not_defined_scores_nothing(name, truth, predicted, score):
    assert metrics.METRICS[name](np.array(truth), np.array(predicted)) == score


def test_ratings_that_are_not_finite_are_told():
    with pytest.raises(UserError, match="not finite"):
        metrics.pearson(np.array([1.0, 2.0]), np.array([1.0, math.nan]))


def test_the_macro_score_with_and_without_wnli():
    # DistilBERT's published dev scores (Hugging Face's README): 77.0 over nine tasks
    scores = {"cola": 51.3, "mnli": 82.1, "mrpc": 87.5, "qnli": 89.2, "qqp": 88.5, "rte": 59.9, "sst2": 91.3}
    scores |= {"stsb": 86.9, "wnli": 56.3}
    assert metrics.macro(scores) == pytest.approx(77.0, abs=0.05)
    assert metrics.macro(scores, without=["wnli"]) == pytest.approx((77.0 * 9 - 56.3) / 8, abs=0.05)
    assert metrics.macro({}) is None


def test_the_spread_of_seeds():
    spread = metrics.spread([0.5, 0.7, 0.6])
    assert spread["median"] == 0.6
    assert spread["std"] == pytest.approx(0.1)
    assert metrics.spread([0.5])["std"] == 0
