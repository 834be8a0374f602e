"""Losses of every row, whose weights come after the forward pass: any upstream gradient, any rows, inputs untouched."""

import pytest
import torch

from megadistill.kernels.head_losses import Hard, Projection, Soft, TopK, head_row_losses, reference_losses
from megadistill.testing.heads import case, distance, gradients

ROWS = ["eager", "native", "triton", "cuda"]
TERMS = {"soft": Soft(2.0), "reverse": Soft(2.0, "reverse_kl"), "jsd": Soft(2.0, "jsd"), "hard": Hard(0.1)}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WEIGHTS = torch.linspace(-1, 2, 15, dtype=torch.float64, device=DEVICE)


def both(given, exact, term, **options):
    """(weighed losses, gradients) of the op, of `given`, and of the reference, of `exact`."""

    def of(fn, one):
        labels = one.labels.clamp(min=0)
        return gradients(lambda student: (WEIGHTS * fn(student, labels, one.teachers, **options)).sum(), one.student)

    def ours(student, labels, teachers, **options):
        return head_row_losses(student, term, labels, teachers, **options)

    def theirs(student, labels, teachers, **options):
        return reference_losses(student, [term], labels, teachers, **options)[0]

    return of(ours, given), of(theirs, exact)


def same(found, exact, tolerance):
    assert distance(found[0], exact[0]) <= tolerance
    assert all(distance(mine, other) <= tolerance for mine, other in zip(found[1], exact[1], strict=True))


@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_any_upstream_gradient(term):
    """Not one gradient times the first row's weight, as a stored gradient would give."""
    given = case(15, 40).to(torch.float64, DEVICE)
    same(*both(given, given, term), 1e-10)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_by_every_kernel(run_rows, kind, term):
    run_rows(kind, [term], DEVICE)
    given = case(15, 300)
    same(*both(given.to(torch.float32, DEVICE), given.to(torch.float64, DEVICE), term), 1e-5)


@pytest.mark.parametrize("kind", ["eager", "auto", "triton"])
@pytest.mark.parametrize("term", TERMS.values(), ids=TERMS)
def test_bf16_gradients_are_within_3e_3(configure, kind, term):
    configure(rows=kind)
    given = case(15, 300, like=0.3, teacher_hidden=(16,), scale=3.0).to(torch.bfloat16, DEVICE)
    found, exact = both(given, given.to(torch.float64, DEVICE), term)
    assert [g.dtype for g in found[1]] == [torch.bfloat16] * 3
    assert head_row_losses(given.student, term, given.labels.clamp(min=0), given.teachers).dtype == torch.float32
    same(found, exact, 3e-3)


def test_several_teachers_and_kept_entries():
    given = case(15, 40, teacher_hidden=(24, 8)).to(torch.float64, DEVICE)
    for mean in ("arithmetic", "geometric"):
        same(*both(given, given, Soft(2.0), mean=mean, mixing=[0.3, 0.7]), 1e-10)
    ids = torch.arange(4, device=DEVICE).expand(15, 4)
    given.teachers = []
    top_k = TopK(ids, torch.full((15, 4), -2.0, dtype=torch.float64, device=DEVICE))
    same(*both(given, given, Soft(2.0), top_k=top_k), 1e-10)


@pytest.mark.parametrize("kind", ROWS)
def test_nothing_that_was_given_is_changed(run_rows, kind):
    """Kernels write the gradient over the logits; never over what the logits come from."""
    term = Soft(2.0)
    run_rows(kind, [term], DEVICE)
    given = case(15, 40).to(torch.float32, DEVICE)
    tensors = [*given.student, *given.teachers[0], given.labels]
    before = [t.clone() for t in tensors]
    leaves = Projection(*(t.requires_grad_() for t in given.student))
    for one in (term, Hard()):
        losses = head_row_losses(leaves, one, given.labels.clamp(min=0), given.teachers)
        upstream = WEIGHTS.to(losses.dtype)
        kept = losses.detach().clone(), upstream.clone()
        losses.backward(upstream)
        assert torch.equal(losses, kept[0])
        assert torch.equal(upstream, kept[1])
    assert all(map(torch.equal, tensors, before))
