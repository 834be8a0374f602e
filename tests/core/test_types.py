"""A batch knows its positions from the moment it is made."""

from dataclasses import replace

import pytest
import torch

from megadistill.core.types import IGNORE
from megadistill.testing import tiny


def test_positions_are_those_of_mask_and_labels():
    batch = tiny.batch(6)
    assert torch.equal(batch.attended, batch.mask.flatten().nonzero().squeeze(1))
    assert torch.equal(batch.targets, (batch.labels != IGNORE).flatten().nonzero().squeeze(1))
    targets = int((batch.labels != IGNORE).sum())
    assert batch.counts().tolist() == [int(batch.mask.sum()), targets, 6, targets]


def test_pieces_and_changed_copies_have_their_own_positions():
    batch = tiny.batch(5)
    first, second, third = batch.split(2)
    assert [len(piece.ids) for piece in (first, second, third)] == [2, 2, 1]
    assert sum(len(piece.attended) for piece in (first, second, third)) == len(batch.attended)
    assert torch.equal(third.targets + 4 * tiny.LENGTH, batch.targets[batch.targets >= 4 * tiny.LENGTH])
    unlabelled = replace(batch, labels=torch.full_like(batch.labels, IGNORE))
    assert len(unlabelled.targets) == 0


def test_moving_a_batch_computes_nothing_anew(monkeypatch):
    batch = tiny.batch(5)
    monkeypatch.setattr(torch.Tensor, "nonzero", None)  # on a GPU it would wait for the device
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.targets, batch.targets)
    assert moved.counts().tolist() == batch.counts().tolist()


def test_a_label_on_padding_is_a_mistake_of_ours():
    batch = tiny.batch(5)
    with pytest.raises(AssertionError, match="must be attended"):
        replace(batch, mask=torch.zeros_like(batch.mask))
