"""Targets: which positions, what becomes of them, and that nothing but the key decides it."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from megadistill.core.errors import UserError
from megadistill.core.types import IGNORE
from megadistill.data.hashing import row_keys
from megadistill.data.masking import Clm, Mlm, Vocabulary, _geometric

VOCABULARY = Vocabulary(size=1000, mask=4, special=frozenset({0, 2, 3, 4}))


def made_rows(count=400, length=64, seed=0):
    """Rows that open with 2 and close with 3, some of them padded with 0."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 1000, (count, length))
    tokens[:, 0], tokens[:, length // 2] = 2, 3
    segments = np.ones((count, length), dtype=np.int64)
    for row, used in enumerate(rng.integers(4, length + 1, count)):
        tokens[row, used:], segments[row, used:] = 0, 0
    return tokens, segments


def keys(count, epoch=0):
    return row_keys(0, "targets", "one", np.full(count, epoch), np.arange(count))


def test_keys_are_the_ones_of_version_1():
    """Masks of resumed runs depend on this."""
    made = row_keys(3, "targets", "wiki", np.array([0, 0, 1]), np.array([0, 1, 0]))
    assert made.tolist() == [3877199192782804803, 324444991645711052, 4206538631977814915]


@pytest.mark.parametrize("smoothing", [None, 0.7])
def test_mlm_targets_only_ordinary_tokens_in_the_right_shares(smoothing):
    tokens, segments = made_rows()
    counts = np.bincount(tokens[segments > 0], minlength=1000)
    vocabulary = Vocabulary(1000, 4, VOCABULARY.special, counts)
    ids, labels = Mlm(smoothing=smoothing).apply(tokens, segments, keys(400), vocabulary)
    chosen = labels != IGNORE
    maskable = (segments > 0) & ~np.isin(tokens, [0, 2, 3, 4])
    assert not (chosen & ~maskable).any()
    assert (labels[chosen] == tokens[chosen]).all()
    assert (ids[~chosen] == tokens[~chosen]).all()
    assert chosen.sum() / maskable.sum() == pytest.approx(0.15, abs=0.015)
    fate = ids[chosen]
    assert (fate == 4).mean() == pytest.approx(0.8, abs=0.03)
    assert (fate == tokens[chosen]).mean() == pytest.approx(0.1, abs=0.03)
    replaced = fate[(fate != 4) & (fate != tokens[chosen])]
    assert not np.isin(replaced, [0, 2, 3, 4]).any()
    assert len(np.unique(replaced)) > 0.8 * len(replaced)


@pytest.mark.parametrize("smoothing", [None, 0.7])
def test_every_row_has_a_target_where_one_is_possible(smoothing):
    tokens, segments = np.full((64, 8), 2), np.ones((64, 8), dtype=np.int64)
    tokens[:32, 5] = 77
    vocabulary = Vocabulary(1000, 4, VOCABULARY.special, np.ones(1000, dtype=np.int64))
    _, labels = Mlm(probability=0.01, smoothing=smoothing).apply(tokens, segments, keys(64), vocabulary)
    assert (labels[:32] != IGNORE).sum(axis=1).tolist() == [1] * 32
    assert (labels[32:] == IGNORE).all()


def test_smoothing_prefers_rare_tokens_by_its_exponent():
    tokens = np.tile(np.array([10, 11]), (4000, 1))
    counts = np.ones(1000, dtype=np.int64)
    counts[10] = 100
    vocabulary = Vocabulary(1000, 4, VOCABULARY.special, counts)
    _, labels = Mlm(probability=0.5, smoothing=0.7).apply(tokens, np.ones_like(tokens), keys(4000), vocabulary)
    common = (labels[:, 0] != IGNORE).mean()
    assert common == pytest.approx(100**-0.7 / (1 + 100**-0.7), abs=0.01)


@pytest.mark.parametrize("smoothing", [None, 0.7])
def test_a_rows_targets_depend_on_its_key_alone(smoothing):
    tokens, segments = made_rows(50)
    vocabulary = Vocabulary(1000, 4, VOCABULARY.special, np.arange(1000))
    targets = Mlm(smoothing=smoothing)
    together = targets.apply(tokens, segments, keys(50), vocabulary)
    for row in range(0, 50, 7):
        alone = targets.apply(tokens[[row]], segments[[row]], keys(50)[[row]], vocabulary)
        assert np.array_equal(alone[0][0], together[0][row])
        assert np.array_equal(alone[1][0], together[1][row])
    later = targets.apply(tokens, segments, keys(50, epoch=1), vocabulary)
    assert not np.array_equal(later[1], together[1])


def test_clm_predicts_the_next_token_of_the_same_document_and_its_separator():
    tokens = np.array([[5, 6, 3, 7, 8, 3], [9, 3, 0, 0, 0, 0]])
    segments = np.array([[1, 1, 1, 2, 2, 2], [1, 1, 0, 0, 0, 0]])
    ids, labels = Clm().apply(tokens, segments, keys(2), VOCABULARY)
    assert np.array_equal(ids, tokens)
    x = IGNORE
    assert labels.tolist() == [[6, 3, x, 8, 3, x], [3, x, x, x, x, x]]


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match="mask token"):
        Mlm().check(Vocabulary(1000, None, frozenset()))
    with pytest.raises(ValidationError, match="must be 1"):
        Mlm(mask=0.9)


@pytest.mark.parametrize("smoothing", [None, 0.7])
def test_masking_a_batch_is_quick(smoothing):
    tokens, segments = made_rows(64, 128)
    vocabulary = Vocabulary(1000, 4, VOCABULARY.special, np.arange(1000))
    durations = []
    for _ in range(20):
        start = time.perf_counter()
        Mlm(smoothing=smoothing).apply(tokens, segments, keys(64), vocabulary)
        durations.append(time.perf_counter() - start)
    assert min(durations) < 0.005


# ------------------------------------------------------------------ words, spans, static


def test_words_are_chosen_whole():
    rng = np.random.default_rng(0)
    tokens, segments = made_rows(300)
    opens = rng.random(1000) < 0.6
    vocabulary = Vocabulary(1000, 4, VOCABULARY.special, None, opens)
    ids, labels = Mlm(unit="word").apply(tokens, segments, keys(300), vocabulary)
    chosen, maskable = labels != IGNORE, (segments > 0) & vocabulary.maskable[tokens]
    follows = maskable[:, 1:] & maskable[:, :-1] & ~opens[tokens[:, 1:]]
    assert (chosen[:, 1:] == chosen[:, :-1])[follows].all()
    assert not (chosen & ~maskable).any()
    assert chosen.sum() / maskable.sum() == pytest.approx(0.15, abs=0.02)
    assert (ids[chosen] == 4).mean() == pytest.approx(0.8, abs=0.03)
    alone = Mlm(unit="word").apply(tokens[[7]], segments[[7]], keys(300)[[7]], vocabulary)
    assert np.array_equal(alone[1][0], labels[7])


def test_spans_have_geometric_lengths_share_one_fate_and_cross_no_border():
    tokens = np.random.default_rng(0).integers(5, 1000, (400, 256))
    tokens[:, 100] = 3
    segments = np.ones_like(tokens)
    segments[:, 101:], segments[:, 250:] = 2, 0
    ids, labels = Mlm(unit="span").apply(tokens, segments, keys(400), VOCABULARY)
    chosen = labels != IGNORE
    maskable = (segments > 0) & (tokens != 3)
    assert (chosen.sum(axis=1) == np.round(0.15 * maskable.sum(axis=1))).all()
    runs = [len(run) for row in chosen for run in "".join("x" if c else " " for c in row).split()]
    assert np.mean(runs) > 3  # cut and joined ones too; SpanBERT's mean is 3.8
    fate = np.where(ids == 4, 0, np.where(ids == tokens, 2, 1))
    together = chosen[:, 1:] & chosen[:, :-1]
    assert (fate[:, 1:] == fate[:, :-1])[together].mean() > 0.9
    assert (ids[chosen] == 4).mean() == pytest.approx(0.8, abs=0.03)
    singles = Mlm(unit="span", span_mean=1).apply(tokens, segments, keys(400), VOCABULARY)[1] != IGNORE
    assert np.mean([len(r) for row in singles for r in "".join("x" if c else " " for c in row).split()]) < 1.3


def test_span_lengths_have_the_mean_that_is_asked_for():
    draws = np.random.default_rng(0).random(100_000)
    assert _geometric(draws, 3.8, 10).mean() == pytest.approx(3.8, abs=0.05)
    assert set(_geometric(draws, 3.8, 10).tolist()) == set(range(1, 11))
    assert (_geometric(draws, 1, 10) == 1).all()


def test_static_masks_come_again_and_dynamic_ones_do_not():
    epochs = np.arange(12)
    assert Mlm(maskings=1).drawn_anew(epochs).tolist() == [0] * 12
    assert Mlm(maskings=10).drawn_anew(epochs).tolist() == [*range(10), 0, 1]
    assert Mlm().drawn_anew(epochs).tolist() == epochs.tolist()


def test_smoothed_targets_are_distilberts_by_decile_of_frequency():
    """Against one draw without replacement over the flattened batch, as its code does."""
    rng = np.random.default_rng(0)
    share = 1 / np.arange(1, 996)
    tokens = 5 + rng.choice(995, size=(2000, 64), p=share / share.sum())
    counts = np.zeros(1000, dtype=np.int64)
    np.add.at(counts, tokens.reshape(-1), 1)
    vocabulary = Vocabulary(1000, 4, VOCABULARY.special, counts)
    chosen = Mlm(smoothing=0.7).apply(tokens, np.ones_like(tokens), keys(2000), vocabulary)[1] != IGNORE
    flat = tokens.reshape(-1)
    weights = torch.from_numpy(np.maximum(counts, 1).astype(np.float64) ** -0.7)[flat]
    wanted = math.ceil(0.15 * len(flat))
    reference = np.zeros(len(flat), dtype=bool)
    generator = torch.Generator().manual_seed(0)
    reference[torch.multinomial(weights, wanted, generator=generator).numpy()] = True
    decile = np.searchsorted(np.quantile(counts[flat], np.linspace(0.1, 0.9, 9)), counts[flat])
    ours = np.bincount(decile, chosen.reshape(-1), minlength=10) / chosen.sum()
    theirs = np.bincount(decile, reference, minlength=10) / reference.sum()
    assert np.abs(ours - theirs).max() < 0.03
    assert ours[0] > 2 * ours[-1]  # rare tokens far oftener than frequent ones


def test_what_units_cannot_do_is_refused():
    with pytest.raises(UserError, match="marks where words begin"):
        Mlm(unit="word").check(Vocabulary(1000, 4, frozenset()))
    with pytest.raises(ValidationError, match="needs unit: token"):
        Mlm(unit="word", smoothing=0.7)
    with pytest.raises(ValidationError, match="out of reach"):
        Mlm(unit="span", span_mean=8)
