"""The order law: every epoch a permutation, shares held, the same for all time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megadistill.core.errors import UserError
from megadistill.data.mixture import deficit_schedule, integer_weights
from megadistill.data.order import BatchSizes, Blocks, Order, merge_windows, permute, round_keys


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


# ------------------------------------------------------------------ blocks


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 900), st.integers(1, 70), st.integers(1, 9), st.integers(0, 99), st.integers(0, 3))
def test_in_blocks_too_every_epoch_is_a_permutation(size, rows, window, seed, epoch):
    order = Order([size], None, seed, blocks=Blocks(rows=rows, window=window))
    places = order.locate(np.arange(epoch * size, (epoch + 1) * size))
    assert sorted(places.row.tolist()) == list(range(size))
    assert (places.epoch == epoch).all()


def test_blocks_keep_little_near_at_a_time_and_still_shuffle():
    blocks = Blocks(rows=100, window=4)
    order = Order([10_000], None, 0, blocks=blocks)
    rows = order.locate(np.arange(10_000)).row
    for start in range(0, 10_000, 400):
        assert len(np.unique(rows[start : start + 400] // 100)) == 4
    assert len(np.unique(rows[:400] // 100)) == 4
    assert (np.diff(rows[:400] // 100) != 0).mean() > 0.6  # rows of different blocks alternate
    assert abs(np.corrcoef(rows, np.arange(10_000))[0, 1]) < 0.2
    again = order.locate(np.arange(10_000, 20_000)).row
    assert set(np.unique(rows[:400] // 100)) != set(np.unique(again[:400] // 100))


# ------------------------------------------------------------------ repeats and epochs


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 4)), min_size=1, max_size=4), st.integers(0, 9))
def test_repeats_bring_rows_that_often_per_epoch_each_time_with_new_masks(corpora, seed):
    rows, repeats = [n for n, _ in corpora], [r for _, r in corpora]
    order = Order(rows, None, seed, repeats=repeats)
    total = sum(n * r for n, r in corpora)
    seen = located(order, np.arange(total, 2 * total))
    expected = [(c, r + copy, row) for c, (n, r) in enumerate(corpora) for copy in range(r) for row in range(n)]
    assert sorted(seen) == sorted(expected)


def test_a_corpus_leaves_after_its_epochs_and_the_others_take_its_share():
    rows = [50, 400, 1000]
    order = Order(rows, [2, 1, 1], 3, epochs=[3, 1, None])
    assert order.length is None
    places = order.locate(np.arange(3000))
    for corpus, passes in ((0, 3), (1, 1)):
        mine = places.corpus == corpus
        drawn = sorted(zip(places.epoch[mine].tolist(), places.row[mine].tolist(), strict=True))
        assert drawn == [(e, r) for e in range(passes) for r in range(rows[corpus])]
    last = int(np.flatnonzero(places.corpus == 0)[-1])
    assert last == pytest.approx(300, abs=4)  # half of the draws until then
    after = places.corpus[last + 1 : last + 201]
    assert (after == 1).mean() == pytest.approx(0.5, abs=0.02)


def test_the_data_ends_where_all_corpora_have_left():
    order = Order([30, 10], [1, 1], 0, epochs=[2, 1])
    assert order.length == 70
    assert len(set(located(order, np.arange(70)))) == 70
    with pytest.raises(UserError, match="the data ends after 70 rows"):
        order.locate(np.arange(60, 71))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0.1, 9), st.integers(1, 3)), min_size=1, max_size=4),
    st.integers(0, 9),
)
def test_limited_mixtures_give_every_pass_of_every_corpus_exactly_once(corpora, seed):
    rows, weights, epochs = zip(*corpora, strict=True)
    order = Order(rows, weights, seed, epochs=epochs)
    assert order.length == sum(n * e for n, e in zip(rows, epochs, strict=True))
    seen = sorted(located(order, np.arange(order.length)))
    assert seen == [(c, e, r) for c, n in enumerate(rows) for e in range(epochs[c]) for r in range(n)]


# ------------------------------------------------------------------ batches


def test_batches_that_grow_follow_one_another_without_gap_or_overlap():
    sizes = BatchSizes(8, [(10, 16), (13, 64)])
    spans = [sizes.span(step) for step in range(20)]
    assert [size for _, size in spans] == [8] * 10 + [16] * 3 + [64] * 7
    assert [start for start, _ in spans] == np.cumsum([0] + [size for _, size in spans[:-1]]).tolist()
    assert BatchSizes(8, [(0, 4)]).span(3) == (12, 4)
    assert BatchSizes(2048).span(10**9) == (2048 * 10**9, 2048)


@pytest.mark.parametrize("blocks", [None, Blocks(rows=64, window=8)])
def test_global_batches_are_the_same_for_any_number_of_ranks(blocks):
    order = Order([5000, 3000], [3, 1], 1, blocks=blocks)
    sizes = BatchSizes(1024, [(7, 2048)])
    whole = located(order, 7 * 1024 + np.arange(2048))
    for world in (1, 2, 4, 8, 64, 1024):
        for micro in {1, 2048 // world}:
            ranks = [located(order, sizes.positions(7, rank, world, micro)) for rank in range(world)]
            parts = np.array(ranks).reshape(world, -1, micro, 3).transpose(1, 0, 2, 3).reshape(-1, 3)
            assert [tuple(place) for place in parts.tolist()] == whole


def test_blocks_repeats_and_epochs_are_those_of_version_1():
    """Runs resume by this: whoever changes it raises ORDER_VERSION."""
    positions = [0, 1, 2, 500, 1036, 5000]
    block = Order([1000, 37], None, 7, blocks=Blocks(rows=10, window=5))
    repeated = Order([1000, 37], None, 7, repeats=[1, 4])
    limited = Order([1000, 37], [3, 1], 7, epochs=[None, 2])
    assert [located(order, positions) for order in (block, repeated, limited)] == GOLDEN


GOLDEN = [
    [(0, 0, 28), (0, 0, 748), (0, 0, 744), (0, 0, 187), (0, 0, 71), (0, 4, 889)],
    [(0, 0, 163), (0, 0, 31), (0, 0, 413), (0, 0, 359), (0, 0, 193), (0, 4, 384)],
    [(0, 0, 840), (0, 0, 335), (1, 0, 32), (0, 0, 549), (0, 0, 966), (0, 4, 154)],
]
