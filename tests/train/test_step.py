"""DistillStep: what it adds up, and that the logits of a whole batch never exist."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megadistill.core.types import COUNT_KINDS
from megadistill.objectives.cosine import Cosine
from megadistill.objectives.hard_ce import HardCE
from megadistill.objectives.soft_ce import SoftCE
from megadistill.teachers.online import OnlineSource
from megadistill.testing import tiny
from megadistill.train.step import DistillStep

OBJECTIVES = [SoftCE(kind="soft_ce", temperature=2, weight=5), HardCE(kind="hard_ce", weight=2), Cosine(kind="cosine")]


class LargestTensor(TorchDispatchMode):
    """Remembers the most values that any tensor made inside has."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor):
                self.numel = max(self.numel, value.numel())
        return result


def parts(architecture="bert", **config):
    teacher = OnlineSource("tiny", tiny.language_model(architecture, 3, seed=1, **config))
    student = tiny.language_model(architecture, 2, seed=2, **config)
    return teacher, DistillStep(student, OBJECTIVES, [o.build(student.dims, teacher.dims) for o in OBJECTIVES])


def test_the_loss_is_the_weighted_sum_of_means():
    teacher, step = parts()
    batch = tiny.batch(6)
    counts = batch.counts()
    loss, sums = step(batch, teacher.signals(batch, step.needs), (1 / counts).float())
    by_kind = dict(zip(COUNT_KINDS, counts.tolist(), strict=True))
    means = [float(s) / by_kind[step.count_of[o.label]] for s, o in zip(sums, OBJECTIVES, strict=True)]
    assert float(loss) == pytest.approx(5 * means[0] + 2 * means[1] + means[2], rel=1e-6)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_logits_of_a_whole_batch_never_exist(architecture):
    vocabulary = 30_011
    teacher, step = parts(architecture, vocab_size=vocabulary)
    batch = tiny.batch(48, ragged=False)
    with LargestTensor() as largest:
        loss, _ = step(batch, teacher.signals(batch, step.needs), (1 / batch.counts()).float())
        loss.backward()
    tokens = batch.mask.sum()
    assert largest.numel < tokens * vocabulary / 4
    assert largest.numel >= vocabulary * tiny.WIDTH  # the mode saw the head at work


def test_the_teacher_is_frozen_in_evaluation_mode_and_gets_no_gradient():
    teacher, step = parts("bert", hidden_dropout_prob=0.5)
    before = teacher.identity()
    batch = tiny.batch(6)
    first, second = (teacher.signals(batch, step.needs).hidden[-1] for _ in range(2))
    assert torch.equal(first, second)
    loss, _ = step(batch, teacher.signals(batch, step.needs), (1 / batch.counts()).float())
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in teacher.model.parameters())
    assert teacher.identity() == before
    with torch.no_grad():
        next(teacher.model.parameters()).view(-1)[0] += 1
    assert teacher.identity() != before
