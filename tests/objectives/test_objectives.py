"""Objectives through real signals: hand numbers, masks, additivity, and what a wrong setting is told."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megadistill.core.errors import UserError
from megadistill.core.types import IGNORE, Dims
from megadistill.objectives.cosine import Cosine
from megadistill.objectives.hard_ce import HardCE
from megadistill.objectives.soft_ce import SoftCE
from megadistill.testing import states
from megadistill.testing.states import LABELS, MASK, STUDENT, TEACHER

DIMS = Dims(layers=1, hidden=3, vocabulary=3)


def value(objective, mask=MASK, labels=LABELS, student=STUDENT, teacher=TEACHER):
    loss = objective.build(DIMS, DIMS)
    return loss(states.answering(student), states.answering(teacher), states.given(mask, labels))


@pytest.mark.parametrize(
    ("temperature", "mean", "norm"),
    [
        (1, 0.7083187360, 0.4579693475),
        (2, 0.7971552395, 0.5072233030),
        (4, 0.8239160682, 0.5218983315),
        (8, None, 0.5257466560),
    ],
)
def test_soft_ce_on_the_fixture(temperature, mean, norm):
    student = STUDENT.clone().requires_grad_()
    term = value(SoftCE(kind="soft_ce", temperature=temperature), student=student)
    assert term.count == "tokens"
    (term.sum / 2).backward()
    assert student.grad.norm().item() == pytest.approx(norm, abs=1e-9)
    if mean is not None:
        assert term.sum.item() / 2 == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize(("divergence", "mean"), [("reverse_kl", 0.7297072205), ("jsd", 0.1581498356)])
def test_other_divergences_on_the_fixture(divergence, mean):
    term = value(SoftCE(kind="soft_ce", temperature=1, divergence=divergence))
    assert term.sum.item() / 2 == pytest.approx(mean, abs=1e-9)


def limit(loss, temperature):
    """How far a loss's gradient is, at a temperature, from Hinton et al.'s limit (2015, equation 4), of its length."""
    student = STUDENT.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(student, temperature), student)
    ours, theirs = (t - t.mean(-1, keepdim=True) for t in (STUDENT, TEACHER))
    wanted = (ours - theirs) / STUDENT.shape[-1] * MASK[..., None]
    return ((gradient - wanted).norm() / wanted.norm()).item()


def test_a_high_temperature_matches_centred_logits():
    def ours(student, temperature):
        return value(SoftCE(kind="soft_ce", temperature=temperature), student=student).sum

    assert limit(ours, 1e3) < 1e-3
    for factor in (lambda t: 1 / t**2, lambda t: t**2):  # T^2 forgotten, and taken twice
        assert limit(lambda student, t, factor=factor: ours(student, t) * factor(t), 1e3) > 0.5


def test_soft_ce_over_targets_only_leaves_other_tokens_out():
    labels = torch.tensor([[0, IGNORE, IGNORE]])
    one = value(SoftCE(kind="soft_ce", temperature=1, scope="targets"), labels=labels)
    alone = value(SoftCE(kind="soft_ce", temperature=1), mask=torch.tensor([[True, False, False]]), labels=labels)
    assert one.count == "asked"
    assert one.sum.item() == alone.sum.item()


def test_hard_ce_on_the_fixture():
    term = value(HardCE(kind="hard_ce"))
    assert term.count == "targets"
    assert term.sum.item() / 2 == pytest.approx(1.7531091266, abs=1e-9)


def test_cosine_on_the_fixture_and_a_zero_state_is_no_nan():
    term = value(Cosine(kind="cosine"))
    assert term.count == "tokens"
    assert term.sum.item() / 2 == pytest.approx(0.642857142857, abs=1e-9)
    assert (
        value(Cosine(kind="cosine"), torch.tensor([[False, True, False]]), torch.full_like(LABELS, IGNORE)).sum.item()
        == 1.0
    )


def test_equal_models_have_no_soft_loss_and_no_gradient():
    student = TEACHER.clone().requires_grad_()
    term = value(SoftCE(kind="soft_ce", temperature=2), student=student)
    term.sum.backward()
    assert term.sum.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


@pytest.mark.parametrize("objective", [SoftCE(kind="soft_ce"), HardCE(kind="hard_ce"), Cosine(kind="cosine")])
def test_nothing_to_learn_from_is_zero_with_a_graph(objective):
    student = STUDENT.clone().requires_grad_()
    empty = torch.zeros_like(MASK)
    term = value(objective, mask=empty, labels=torch.full_like(LABELS, IGNORE), student=student)
    term.sum.backward()
    assert term.sum.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_sums_add_up_over_any_split(seed, cut):
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(6, 3, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    mask = torch.rand(6, 3, generator=draw) < 0.7
    labels = torch.where(mask & (torch.rand(6, 3, generator=draw) < 0.5), 1, IGNORE)
    for objective in (SoftCE(kind="soft_ce"), HardCE(kind="hard_ce"), Cosine(kind="cosine")):
        whole = value(objective, mask, labels, student, teacher).sum
        parts = sum(
            value(objective, mask[part], labels[part], student[part], teacher[part]).sum
            for part in (slice(0, cut), slice(cut, 6))
        )
        torch.testing.assert_close(whole, parts, rtol=1e-6, atol=1e-6)


def test_cosine_of_another_width_is_refused():
    with pytest.raises(UserError, match="the teacher has 4, the student 3"):
        Cosine(kind="cosine").build(DIMS, Dims(1, 4, 3))
