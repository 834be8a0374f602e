"""The effect that the 2015 paper reports, on scikit-learn's digits: soft targets teach a small net what labels do not.

Hinton, Vinyals & Dean, section 3: half the errors with soft targets at T = 20; section 6: most so when examples are few
(here a twelfth of the teacher's); and with no example of a 3 in the transfer set, almost all 3s are still recognised
once their bias is put right. Skipped where scikit-learn is not installed; only its file of digits is read.
"""

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from megadistill.core.types import Dims, Signals
from megadistill.objectives.hard_ce import HardCE
from megadistill.objectives.soft_ce import SoftCE
from megadistill.testing import states

SPEC = importlib.util.find_spec("sklearn")
pytestmark = pytest.mark.skipif(SPEC is None, reason="scikit-learn, whose digits are read, is not installed")
SOFT = SoftCE(kind="soft_ce", temperature=20, weight=0.9)
HARD = HardCE(kind="hard_ce", weight=0.1)
TRAIN, TRANSFER = 1200, 100
"""Examples that the teacher learns from, of 1,797, and the student; the rest are for counting errors."""


class Net(nn.Module):
    """A hidden layer and the head that an objective is asked through."""

    def __init__(self, width, dropout=0.0):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(width, 10)

    def forward(self, pixels):
        return self.head(self.body(pixels))

    def signals(self, pixels):
        hidden = self.body(pixels)
        return Signals(lambda fn, rows: fn(hidden[rows], self.head.weight, self.head.bias))


@pytest.fixture(scope="module")
def digits():
    path = Path(SPEC.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    with gzip.open(path, "rt") as lines:
        table = torch.from_numpy(np.loadtxt(lines, delimiter=",")).float()
    table = table[torch.randperm(len(table), generator=torch.Generator().manual_seed(0))]
    pixels, labels = table[:, :64] / 16, table[:, 64].long()
    return pixels[:TRAIN], labels[:TRAIN], pixels[TRAIN:], labels[TRAIN:]


@pytest.fixture(scope="module")
def teacher(digits):
    """Large, with dropout, on all the examples."""
    pixels, labels, *_ = digits
    torch.manual_seed(0)
    net = Net(300, dropout=0.5)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(250):
        some = torch.randperm(TRAIN)[:400]
        nn.functional.cross_entropy(net(pixels[some]), labels[some]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


def taught(digits, teacher, seed, objectives, without=None, examples=TRANSFER):
    """A small net without regularisation, by the project's own objectives."""
    pixels, labels = digits[0][:examples], digits[1][:examples]
    if without is not None:
        pixels, labels = pixels[labels != without], labels[labels != without]
    torch.manual_seed(seed)
    net, dims = Net(30), Dims(1, 30, 10)
    losses = [(o.weight, o.build(dims, dims)) for o in objectives]
    batch = states.given(torch.ones(1, len(labels), dtype=torch.bool), labels.unsqueeze(0))
    with torch.no_grad():
        goal = teacher.signals(pixels)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(150):
        sum(w * loss(net.signals(pixels), goal, batch).sum / len(labels) for w, loss in losses).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net


def errors(net, digits):
    _, _, pixels, labels = digits
    return int((net(pixels).argmax(-1) != labels).sum())


def test_soft_targets_halve_what_labels_leave(digits, teacher):
    hard = [errors(taught(digits, teacher, seed, [HARD]), digits) for seed in range(5)]
    soft = [errors(taught(digits, teacher, seed, [SOFT, HARD]), digits) for seed in range(5)]
    assert errors(teacher, digits) < min(soft)
    assert sum(soft) < 0.5 * sum(hard), (soft, hard)
    assert max(soft) < min(hard), (soft, hard)


def test_a_digit_that_it_never_saw_is_known_from_how_the_others_resemble_it(digits, teacher):
    _, _, test_pixels, test_labels = digits
    threes = test_labels == 3
    found = {}
    for name, objectives in (("soft", [SOFT]), ("hard", [HARD])):
        for seed in range(5):
            net = taught(digits, teacher, seed, objectives, without=3, examples=400)
            with torch.no_grad():
                net.head.bias[3] += 3.5
            found.setdefault(name, []).append(float((net(test_pixels[threes]).argmax(-1) == 3).float().mean()))
    assert min(found["soft"]) > 0.8, found
    assert max(found["hard"]) < 0.1, found
