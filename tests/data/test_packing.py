"""Packed rows hold every token of every document once, in order, and say which document it is of."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from megadistill.data import packing
from megadistill.data.config import DataConfig
from megadistill.data.packing import PACKERS, Frame

FRAMES = [Frame(1, 2, 0), Frame(None, 2, 2), Frame(1, None, 0), Frame(None, None, 0)]


def packed(name, documents, length, frame):
    blocks = list(PACKERS[name](documents, length, frame))
    if not blocks:
        return np.empty((0, length), int), np.empty((0, length), int)
    return np.concatenate([t for t, _ in blocks]), np.concatenate([s for _, s in blocks])


documents_of_ids = st.lists(st.lists(st.integers(3, 99), min_size=0, max_size=70), max_size=25)


@settings(deadline=None, max_examples=60)
@given(documents_of_ids, st.integers(4, 24), st.sampled_from(FRAMES))
def test_concat_loses_nothing(documents, length, frame):
    tokens, segments = packed("concat", documents, length, frame)
    framed = [
        [*[frame.first] * (frame.first is not None), *d, *[frame.last] * (frame.last is not None)] for d in documents
    ]
    expected = [i for d, f in zip(documents, framed, strict=True) if d for i in f]
    real = segments > 0
    assert tokens[real].tolist() == expected
    assert (tokens[~real] == frame.pad).all()
    assert real.reshape(-1)[: len(expected)].all()  # padding only at the very end
    assert len(tokens) == -(-len(expected) // length)


@settings(deadline=None, max_examples=60)
@given(documents_of_ids, st.integers(4, 24), st.sampled_from(FRAMES))
def test_segments_number_the_documents_of_a_row(documents, length, frame):
    _, segments = packed("concat", documents, length, frame)
    owners = [n for n, d in enumerate(d for d in documents if d) for _ in range(len(d) + frame.size)]
    for row in range(len(segments)):
        mine = owners[row * length : (row + 1) * length]
        assert segments[row, : len(mine)].tolist() == [owner - mine[0] + 1 for owner in mine]


@pytest.mark.parametrize("frame", FRAMES)
def test_concat_does_not_depend_on_the_block_size(monkeypatch, frame):
    documents = [list(range(3, 3 + n % 90)) for n in range(200)]
    whole = packed("concat", documents, 16, frame)
    monkeypatch.setattr(packing, "BLOCK_TOKENS", 37)
    for expected, got in zip(whole, packed("concat", documents, 16, frame), strict=True):
        assert np.array_equal(expected, got)


def test_split_frames_every_piece_and_drops_short_ones():
    tokens, _ = packed("split", [list(range(10, 40)), [7] * 5, []], 16, Frame(1, 2, 0))
    assert tokens.shape == (2, 16)  # 30 = 14 + 14 + 2: the last piece and the second document are too short
    assert tokens[0].tolist() == [1, *range(10, 24), 2]
    assert tokens[1].tolist() == [1, *range(24, 38), 2]
    tokens, segments = packed("split", [list(range(10, 37))], 16, Frame(1, 2, 0))
    assert tokens[1].tolist() == [1, *range(24, 37), 2, 0]
    assert segments[1].tolist() == [1] * 15 + [0]


@pytest.mark.parametrize("name", list(PACKERS))
def test_a_document_of_millions_of_tokens_packs_in_linear_time(name):
    start = time.process_time()
    _, segments = packed(name, [np.arange(4_000_000) % 1000 + 3], 128, Frame(1, 2, 0))
    assert time.process_time() - start < 5
    assert (segments > 0).sum() >= 4_000_000


# ------------------------------------------------------------------ best_fit


@settings(deadline=None, max_examples=60)
@given(documents_of_ids, st.integers(4, 24), st.sampled_from(FRAMES))
def test_best_fit_loses_nothing_and_cuts_no_document_that_fits(documents, length, frame):
    tokens, segments = packed("best_fit", documents, length, frame)
    framed = [frame.around(np.array(d, dtype=int)).tolist() for d in documents if d]
    pieces = [f[start : start + length] for f in framed for start in range(0, len(f), length)]
    found = [
        tokens[row][segments[row] == number].tolist()
        for row in range(len(tokens))
        for number in range(1, segments[row].max() + 1)
    ]
    assert sorted(found) == sorted(pieces)
    for row in segments:
        real = row[row > 0]
        assert (np.diff(real) >= 0).all()
        assert (row[len(real) :] == 0).all()
    assert (tokens[segments == 0] == frame.pad).all()


def test_best_fit_pads_little():
    rng = np.random.default_rng(0)
    documents = [np.full(n, 7) for n in rng.integers(1, 400, 3000)]
    assert (packed("best_fit", documents, 512, Frame(None, 2, 0))[1] == 0).mean() < 0.01
    assert (packed("split", documents, 512, Frame(None, 2, 0))[1] == 0).mean() > 0.5


# ------------------------------------------------------------------ pairs


@settings(deadline=None, max_examples=60)
@given(documents_of_ids, st.integers(9, 40))
def test_pairs_are_two_parts_of_one_document_and_lose_only_its_last_few_tokens(documents, length):
    frame = Frame(1, 2, 0, frozenset({5, 6}))
    tokens, segments = packed("pairs", documents, length, frame)
    bodies = []
    for row, kinds in zip(tokens, segments, strict=True):
        a, b = row[kinds == 1].tolist(), row[kinds == 2].tolist()
        assert (a[0], a[-1], b[-1]) == (1, 2, 2)
        assert 1 not in b
        assert len(a) > 2
        assert len(b) > 1
        assert (row[kinds == 0] == 0).all()
        bodies.append(a[1:-1] + b[:-1])
    shortest = max(2, min(packing.MIN_PIECE, length - 3))
    expected = []
    for document in documents:
        left = list(document)
        while len(left) >= shortest:
            body = bodies[len(expected)]
            assert left[: len(body)] == body
            expected.append(body)
            left = left[len(body) :]
    assert expected == bodies


def test_what_models_are_shown_of_rows_is_told_by_packing_and_attention():
    """Segments of other packings number documents, which have no types."""
    needed = {"dir": "prepared", "corpora": [{"kind": "text", "files": ["a.txt"]}], "tokenizer": "tokenizer"}

    def attends(**fields):
        return DataConfig.model_validate(needed | fields).attends

    assert attends(packing="pairs") == "pair"
    for name in ("concat", "best_fit", "split"):
        assert (attends(packing=name), attends(packing=name, attention="document")) == ("row", "document")
    with pytest.raises(ValidationError, match="document keeps A and B of packing: pairs apart"):
        attends(packing="pairs", attention="document")


def test_pairs_end_and_divide_at_sentences():
    document = ([9] * 7 + [5]) * 60
    tokens, segments = packed("pairs", [document], 67, Frame(1, 2, 0, frozenset({5})))
    ends = [(row[kinds == 1][-2], row[kinds == 2][-2]) for row, kinds in zip(tokens, segments, strict=True)]
    assert ends == [(5, 5)] * len(tokens)
    assert len({int((kinds == 1).sum()) for kinds in segments}) > 2  # divided at different sentences
    assert np.array_equal(tokens, packed("pairs", [document], 67, Frame(1, 2, 0, frozenset({5})))[0])
