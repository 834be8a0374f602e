"""Scores: what rows add up to, and that a hopeless model still has some."""

import math

import torch

from megadistill.models.scoring import RowScores, perplexity, summary


def scores(nll):
    rows = [nll, [2.0, 0.0], [1.0, 0.0], [2.0, 0.0]]
    return RowScores(*(torch.tensor(values, dtype=torch.float64) for values in rows))


def test_rows_of_several_batches_add_up():
    totals = scores([3.0, 0.0]).totals() + scores([1.0, 0.0]).totals()
    expected = {"loss": 1.0, "perplexity": math.e, "accuracy": 1.0}
    assert summary(totals, with_teacher=False) == expected
    assert summary(totals, with_teacher=True) == expected | {"agreement_top1": 0.5}


def test_a_diverged_model_has_infinite_perplexity():
    result = summary(scores([4000.0, 0.0]).totals(), with_teacher=False)
    assert (result["loss"], result["perplexity"]) == (2000.0, math.inf)
    assert math.isnan(perplexity(math.nan))


def test_no_targets_at_all_are_no_error():
    assert summary(torch.zeros(4, dtype=torch.float64), with_teacher=True)["perplexity"] == 1
