"""DistillStep: what it adds up, and that the logits of a whole batch never exist."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megadistill.core.types import COUNT_KINDS, Signals
from megadistill.kernels import dispatch
from megadistill.kernels.head_losses import op
from megadistill.objectives.cosine import Cosine
from megadistill.objectives.hard_ce import HardCE
from megadistill.objectives.mixture import Mixture, Weighed
from megadistill.objectives.soft_ce import SoftCE
from megadistill.objectives.step import DistillStep
from megadistill.teachers.online import OnlineSource
from megadistill.testing import tiny

OBJECTIVES = [SoftCE(kind="soft_ce", temperature=2, weight=5), HardCE(kind="hard_ce", weight=2), Cosine(kind="cosine")]


class Watch(TorchDispatchMode):
    """Remembers the most values that any tensor made inside has, and how often the head op ran; it enters that op,
    which modes do not do by themselves."""

    def __init__(self):
        super().__init__()
        self.numel = self.head_ops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.megadistill.head_losses.default:
            self.head_ops += 1
            with self:
                return op._forward._init_fn(*args, **(kwargs or {}))
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
    assert loss.item() == pytest.approx(5 * means[0] + 2 * means[1] + means[2], rel=1e-6)


@pytest.mark.parametrize("rows", ["auto", "eager"])
@pytest.mark.parametrize("architecture", ["bert", "distilbert", "gpt2"])
def test_logits_of_a_whole_batch_never_exist_and_both_losses_are_one_pass(architecture, rows):
    vocabulary = 30_011
    teacher, step = parts(architecture, vocab_size=vocabulary)
    batch = tiny.batch(48, ragged=False)
    before = dispatch.configure(rows=rows, workspace_mib=4)
    try:
        with Watch() as watch:
            loss, _ = step(batch, teacher.signals(batch, step.needs), (1 / batch.counts()).float())
            loss.backward()
    finally:
        dispatch.configure(**vars(before))
    assert watch.numel < batch.mask.sum() * vocabulary / 4
    assert watch.numel >= vocabulary * tiny.WIDTH  # it saw the head at work
    assert watch.head_ops == 1


def test_one_pass_gives_what_the_losses_give_alone():
    teacher, step = parts()
    batch = tiny.batch(6)
    shares = torch.linspace(0.3, 0.9, len(COUNT_KINDS))
    loss, sums = step(batch, teacher.signals(batch, step.needs), shares)
    together = torch.autograd.grad(loss, list(step.parameters()), allow_unused=True)
    student = step.student.signals(batch, step.needs.student_hidden)
    terms = [part.loss(student, teacher.signals(batch, step.needs), batch) for part in step.mixture.parts]
    alone = sum(
        part.weight(1) * shares[COUNT_KINDS.index(term.count)] * term.sum
        for part, term in zip(step.mixture.parts, terms, strict=True)
    )
    torch.testing.assert_close(loss, alone)
    torch.testing.assert_close(sums, torch.stack([term.sum.float() for term in terms]).detach())
    apart = torch.autograd.grad(alone, list(step.parameters()), allow_unused=True)
    for mine, theirs in zip(together, apart, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_gradient_norms_are_those_of_each_objective_alone():
    teacher, step = parts()
    batch = tiny.batch(6)
    signals, shares = teacher.signals(batch, step.needs), torch.linspace(0.3, 0.9, len(COUNT_KINDS))
    step(batch, signals, shares)  # tells what every sum runs over
    norms = step.gradient_norms(batch, signals, shares, 1)
    for number, objective in enumerate(OBJECTIVES):
        alone = DistillStep(step.student, [objective], [objective.build(step.student.dims, teacher.dims)])
        loss, _ = alone(batch, teacher.signals(batch, alone.needs), shares)
        gradients = torch.autograd.grad(loss, list(step.student.parameters()), allow_unused=True)
        norm = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
        torch.testing.assert_close(norms[number], norm, rtol=1e-4, atol=1e-7)
    assert all(p.grad is None for p in step.parameters())


def test_a_temperature_with_a_ramp_is_that_of_its_step():
    teacher, step = parts()
    ramp = {"from_step": 10, "to_step": 20, "start": 1, "end": 0.5}
    batch = tiny.batch(6)

    def sums(at, **fields):
        objective = SoftCE(kind="soft_ce", **fields)
        one = DistillStep(step.student, [objective], [objective.build(step.student.dims, teacher.dims)])
        return one(batch, teacher.signals(batch, one.needs), (1 / batch.counts()).float(), at)[1].item()

    for at, temperature in ((1, 4.0), (10, 4.0), (15, 3.0), (20, 2.0), (99, 2.0)):
        expected = pytest.approx(sums(1, temperature=temperature), rel=1e-6)
        assert sums(at, temperature=4.0, temperature_ramp=ramp) == expected
    assert sums(1, temperature=4.0) != pytest.approx(sums(1, temperature=2.0), rel=1e-4)


def test_losses_on_targets_only_look_at_no_other_row():
    teacher, step = parts()
    objectives = [SoftCE(kind="soft_ce", scope="targets"), HardCE(kind="hard_ce", label_smoothing=0.1)]
    dims = step.student.dims
    mixture = Mixture([Weighed(o.label, o.weight_at, o.build(dims, dims)) for o in objectives])
    batch = tiny.batch(6)
    seen = []

    def watched(signals):
        return Signals(lambda fn, rows: (seen.append(len(rows)), signals.head(fn, rows))[1], signals.hidden)

    student = watched(step.student.signals(batch, frozenset()))
    mixture(student, watched(teacher.signals(batch, step.needs)), batch, torch.ones(len(COUNT_KINDS)), 1)
    assert seen == [len(batch.targets)] * 2


@pytest.mark.parametrize("architecture", ["distilbert", "gpt2"])
def test_students_learn_through_the_fused_op(architecture):
    teacher, step = parts(architecture)
    optimizer = torch.optim.AdamW(step.parameters(), lr=3e-3)
    batch = tiny.batch(8)
    shares = (1 / batch.counts()).float()
    losses = []
    with Watch() as watch:
        for _ in range(15):
            loss, _ = step(batch, teacher.signals(batch, step.needs), shares)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
    assert watch.head_ops == 15


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
