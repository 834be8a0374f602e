"""The order law: every epoch a permutation, shares held, the same for all time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megadistill.data.mixture import deficit_schedule, integer_weights
from megadistill.data.order import Order, merge_windows, permute, round_keys


def located(order, positions):
    return [tuple(place) for place in np.stack(order.locate(np.asarray(positions))).T.tolist()]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 5))
def test_every_epoch_is_a_permutation(size, seed, epoch):
    image = permute(np.arange(size), size, round_keys(seed, 0, epoch))
    assert np.array_equal(np.sort(image), np.arange(size))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=4).filter(any), st.integers(0, 99), st.integers(0, 3))
def test_without_weights_every_row_of_every_corpus_comes_once_per_epoch(rows, seed, epoch):
    total = sum(rows)
    seen = located(Order(rows, None, seed), np.arange(epoch * total, (epoch + 1) * total))
    assert sorted(seen) == [(c, epoch, r) for c, n in enumerate(rows) for r in range(n)]


def test_with_weights_shares_hold_in_every_stretch_and_rows_come_once_per_epoch_of_their_corpus():
    rows, order = [500, 40], Order([500, 40], [3, 1], 5)
    places = order.locate(np.arange(8000))
    assert np.abs(np.cumsum(places.corpus == 1) - np.arange(1, 8001) / 4).max() <= 1
    for corpus, num_rows in enumerate(rows):
        mine = places.corpus == corpus
        drawn = list(zip(places.epoch[mine].tolist(), places.row[mine].tolist(), strict=True))
        whole = len(drawn) // num_rows
        assert sorted(drawn[: whole * num_rows]) == [(e, r) for e in range(whole) for r in range(num_rows)]


def test_positions_are_located_one_by_one_as_together():
    order = Order([70, 9], [2, 5], 1, skips=[(10, 20)])
    positions = np.random.default_rng(0).integers(0, 5000, 300)
    assert located(order, positions) == [located(order, [p])[0] for p in positions]


def test_epochs_and_seeds_shuffle_anew_and_thoroughly():
    order = Order([10_000], None, 0)
    first, second = (order.locate(np.arange(e * 10_000, (e + 1) * 10_000)).row for e in (0, 1))
    other = Order([10_000], None, 1).locate(np.arange(10_000)).row
    for a, b in ((first, second), (first, other), (first, np.arange(10_000)), (first[1:], first[:-1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
        assert (a == b).sum() < 10  # 1 is expected
    tenths = np.stack([np.histogram(part, bins=10, range=(0, 10_000))[0] for part in first.reshape(10, 1000)])
    assert (((tenths - 100) ** 2) / 100).sum() < 140  # chi-square, 81 degrees of freedom: p < 1e-4


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), max_size=5),
    st.integers(30, 90),
)
def test_skipping_leaves_out_exactly_the_windows(windows, size):
    order = Order([size], None, 3, skips=windows)
    skipped = {d for start, stop in windows for d in range(start, stop)}
    expected = [d for d in range(1000) if d not in skipped][:300]
    assert order.draws(np.arange(300)).tolist() == expected
    assert located(order, np.arange(300)) == located(Order([size], None, 3), expected)


def test_windows_are_merged():
    assert merge_windows([(5, 9), (1, 3), (3, 4), (8, 12), (7, 7)]) == [(1, 4), (5, 12)]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=6))
def test_integer_weights_sum_and_stay_near(weights):
    whole = integer_weights(weights, 4096)
    assert sum(whole) == 4096
    assert min(whole) >= 1
    exact = np.array(weights) / sum(weights) * 4096
    assert np.abs(np.array(whole) - exact).max() <= len(weights)


def test_the_schedule_uses_each_pool_as_often_as_its_weight():
    schedule, ranks = deficit_schedule([5, 2, 1])
    assert np.bincount(schedule).tolist() == [5, 2, 1]
    assert schedule.tolist() == [0, 1, 0, 0, 2, 0, 1, 0]
    assert ranks[schedule == 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("weights", "positions", "golden"),
    [
        (
            None,
            [0, 1, 2, 1036, 1037, 5000],
            [(0, 0, 163), (0, 0, 31), (0, 0, 413), (0, 0, 193), (0, 1, 243), (0, 4, 279)],
        ),
        (
            [3, 1],
            [0, 1, 2, 3, 4, 10**12],
            [(0, 0, 840), (0, 0, 335), (1, 0, 32), (0, 0, 828), (0, 0, 956), (0, 750000000, 254)],
        ),
    ],
)
def test_the_order_is_the_one_of_version_1(weights, positions, golden):
    """Runs resume by this: whoever changes it raises ORDER_VERSION."""
    assert located(Order([1000, 37], weights, 7), positions) == golden
