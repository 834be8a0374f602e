"""Packed rows hold every token of every document once, in order, and say which document it is of."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megadistill.data import packing
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


@pytest.mark.parametrize("name", ["concat", "split"])
def test_a_document_of_millions_of_tokens_packs_in_linear_time(name):
    start = time.perf_counter()
    _, segments = packed(name, [np.arange(4_000_000) % 1000 + 3], 128, Frame(1, 2, 0))
    assert time.perf_counter() - start < 5
    assert (segments > 0).sum() >= 4_000_000
