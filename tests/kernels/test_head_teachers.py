"""What a teacher can be: several, padded, of another width, or kept as its largest entries only."""

import pytest
import torch

from megadistill.kernels.head_losses import Hard, Projection, Soft, TopK, head_losses, reference_losses
from megadistill.testing.heads import case, definition, distance, ours

TERMS = [Soft(2.0), Hard()]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def same(found, exact, tolerance=1e-10):
    assert distance(found[0], exact[0]) <= tolerance
    for mine, theirs in zip(found[1], exact[1], strict=True):
        assert distance(mine, theirs) <= tolerance


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("mixing", [None, [0.2, 0.5, 0.3]])
def test_several_teachers_of_several_widths(mean, mixing):
    given = case(19, 61, teacher_hidden=(8, 24, 40))
    options = {"mean": mean, "mixing": mixing}
    same(ours(given, TERMS, **options), definition(given, TERMS, **options))


def test_a_mean_of_equal_teachers_is_that_teacher():
    one = case(11, 30)
    value, _ = ours(one, TERMS)
    for mean in ("geometric", "arithmetic"):
        one.teachers = one.teachers[:1] * 3
        assert ours(one, TERMS, mean=mean)[0] == pytest.approx(float(value), rel=1e-10)


@pytest.mark.parametrize("rows", ["eager", "native", "triton", "cuda"])
@pytest.mark.parametrize("teacher_size", [64, 50])
def test_vocabularies_padded_on_one_side(run_rows, rows, teacher_size):
    """The larger teacher's extra entries are cut; those that the smaller lacks have probability 0, not logit 0."""
    run_rows(rows, TERMS, DEVICE)
    given = case(13, 57)
    theirs = case(13, teacher_size, seed=3).teachers[0]
    given.teachers = [theirs]
    found = ours(given.to(torch.float32, DEVICE), TERMS)
    same(found, definition(given, TERMS), 1e-5)
    zeros = Projection(theirs.hidden, torch.nn.functional.pad(theirs.weight, (0, 0, 0, max(57 - teacher_size, 0))))
    given.teachers = [zeros]
    if teacher_size < 57:
        assert distance(found[1][0], definition(given, TERMS)[1][0]) > 0.01


def test_rows_of_the_head_past_the_vocabulary_get_nothing():
    given = case(13, 50)
    cut = ours(given, TERMS)
    padded = case(13, 50)
    for name, head in (("student", padded.student), ("teacher", padded.teachers[0])):
        weight = torch.cat([head.weight, torch.full((14, head.weight.shape[1]), 9.0, dtype=torch.float64)])
        wider = Projection(head.hidden, weight, torch.cat([head.bias, torch.full((14,), 50.0, dtype=torch.float64)]))
        if name == "student":
            padded.student = wider
        else:
            padded.teachers = [wider]
    value, (hidden, weight, bias) = ours(padded, TERMS, vocabulary=50)
    assert distance(value, cut[0]) <= 1e-12
    assert distance(hidden, cut[1][0]) <= 1e-12
    assert distance(weight[:50], cut[1][1]) <= 1e-12
    assert torch.equal(weight[50:], torch.zeros_like(weight[50:]))
    assert torch.equal(bias[50:], torch.zeros_like(bias[50:]))


@pytest.mark.parametrize("ghost", [True, False])
@pytest.mark.parametrize("kept", [1, 5, 40])
def test_top_k_equals_its_definition(ghost, kept):
    given = case(17, 41)
    log_p = (torch.nn.functional.linear(*given.teachers[0]) / 2).log_softmax(-1)
    top = TopK(*log_p.topk(kept)[::-1], ghost)
    given.teachers = []
    same(ours(given, TERMS, top_k=top), definition(given, TERMS, top_k=top))


def test_top_k_of_everything_is_the_teacher_itself():
    given = case(17, 41, 1)
    log_p = (torch.nn.functional.linear(*given.teachers[0]) / 2).log_softmax(-1)
    whole = ours(given, [Soft(2.0)])
    top = TopK(*log_p.topk(41)[::-1])
    given.teachers = []
    same(ours(given, [Soft(2.0)], top_k=top), whole, 1e-7)


def test_the_ghost_bucket_keeps_the_rest_of_the_mass_from_vanishing():
    """Without it the student learns that what was not kept is impossible: at its own teacher the gradient is not 0."""
    given = case(17, 41, 1, teacher_hidden=(16,), like=0.0)
    given.student = given.teachers[0]
    log_p = torch.nn.functional.linear(*given.teachers[0]).log_softmax(-1)
    ids, kept = log_p.topk(5)[::-1]
    given.teachers = []
    assert ours(given, [Soft(1.0)], top_k=TopK(ids, kept))[1][0].abs().max() < 1e-12
    renormalised = TopK(ids, kept.log_softmax(-1), False)
    assert ours(given, [Soft(1.0)], top_k=renormalised)[1][0].abs().max() > 1e-2


def test_a_teacher_of_another_width_and_dtype():
    given = case(12, 33).to(torch.float32)
    exact = definition(case(12, 33), TERMS)
    given.teachers = [Projection(*(t.double() for t in given.teachers[0]))]
    assert distance(ours(given, TERMS)[1][0], exact[1][0]) < 1e-5


@pytest.mark.parametrize(
    "needs", [(True, False, False), (False, True, False), (False, False, True), (True, True, False)]
)
def test_a_frozen_head_or_body_costs_and_gets_nothing(needs):
    given = case(12, 33)
    same(ours(given, TERMS, needs), definition(given, TERMS, needs))


def test_no_gradient_reaches_the_teacher():
    given = case(12, 33)
    teacher = Projection(*(t.requires_grad_() for t in given.teachers[0]))
    hidden = given.student.hidden.requires_grad_()
    head_losses(given.student, TERMS, given.coefficients, given.labels, [teacher])[0].backward()
    assert hidden.grad is not None
    assert all(t.grad is None for t in teacher)


def test_gradients_of_soft_targets_keep_their_size_when_the_temperature_changes():
    """T^2: without it the gradient falls like 1 / T^2, and the weights of the losses change meaning."""
    given = case(64, 101, 1, scale=0.2)
    sizes = [float(ours(given, [Soft(t)])[1][0].norm()) for t in (2.0, 4.0, 8.0)]
    assert max(sizes) / min(sizes) < 1.2


def test_the_gradient_is_that_of_the_reported_value():
    """Weights, T and smoothing must act on the gradient as on the value."""
    given = case(3, 7)
    for terms in ([Soft(3.0), Hard(0.2)], [Soft(1.5, "jsd", 0.2), Hard()], [Soft(2.0, "reverse_kl"), Hard()]):
        value, (hidden, *_) = ours(given, terms)
        step = 1e-6
        moved = case(3, 7)
        moved.student.hidden[1, 2] += step
        slope = 3 * float(ours(moved, terms)[0] - value) / step
        assert slope == pytest.approx(float(hidden[1, 2]), rel=1e-4, abs=1e-7)


def test_plain_losses_do_not_depend_on_coefficients():
    given = case(8, 20)
    exact = reference_losses(given.student, TERMS, given.labels, given.teachers)
    for scale in (1.0, 1e-9):
        _, losses = head_losses(given.student, TERMS, scale * given.coefficients, given.labels, given.teachers)
        torch.testing.assert_close(losses, exact)
