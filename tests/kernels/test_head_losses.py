"""The head losses against their definition in fp64: value and every gradient, for every loss, shape and block size."""

from dataclasses import replace

import pytest
import torch

from megadistill.kernels import native
from megadistill.kernels.head_losses import (
    Hard,
    Projection,
    Soft,
    reference_losses,
    rows_triton,
)
from megadistill.kernels.head_losses import blocks as layout
from megadistill.kernels.head_losses.rows_torch import Block
from megadistill.testing.heads import Case, case, definition, distance, gradients, ours

TERMS = {
    "T=3 and smoothed": [Soft(3.0), Hard(0.1)],
    "soft T=1": [Soft(1.0)],
    "soft T=2": [Soft(2.0)],
    "soft T=4": [Soft(4.0)],
    "hard": [Hard()],
    "smoothed": [Hard(0.1)],
    "soft and hard": [Soft(2.0), Hard()],
    "T=1 and smoothed": [Soft(1.0), Hard(0.2)],
    "reverse": [Soft(2.0, "reverse_kl"), Hard()],
    "jsd": [Soft(1.5, "jsd", 0.3), Hard()],
    "three": [Soft(2.0), Soft(1.0, "jsd"), Hard(0.1)],
}


ROWS = ["eager", "native", "triton", "cuda"]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def same(found, exact, tolerance):
    assert distance(found[0], exact[0]) <= tolerance
    assert len(found[1]) == len(exact[1])
    for ours_, theirs in zip(found[1], exact[1], strict=True):
        assert ours_.shape == theirs.shape
        assert distance(ours_, theirs) <= tolerance


@pytest.fixture(params=[1, 7, None], ids=["a row a block", "blocks of 7", "one block"])
def blocks(request, monkeypatch):
    """How many rows a block has."""
    if request.param is not None:
        monkeypatch.setattr(layout, "block_rows", lambda num_rows, *_: (min(request.param, num_rows),) * 3)


@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_equal_to_the_definition(blocks, terms, bias):
    given = case(37, 101, len(terms), bias=bias)
    same(ours(given, terms), definition(given, terms), 1e-11)


@pytest.mark.parametrize("rows", [0, 1, 2, 31])
@pytest.mark.parametrize("vocabulary", [1, 3, 257, 1023])
def test_odd_shapes(rows, vocabulary):
    terms = [Soft(2.0), Hard(0.1)]
    given = case(rows, vocabulary)
    same(ours(given, terms), definition(given, terms), 1e-10)


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize(("rows", "vocabulary"), [(0, 3), (1, 2), (2, 3), (5, 257)])
def test_odd_shapes_by_every_kernel(run_rows, kind, rows, vocabulary):
    terms = [Soft(2.0), Hard(0.1)]
    run_rows(kind, terms, DEVICE)
    given = case(rows, vocabulary)
    same(ours(given.to(torch.float32, DEVICE), terms), definition(given, terms), 1e-5)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
@pytest.mark.parametrize("vocabulary", [5, 5003])
def test_fp32_gradients_are_within_1e_5(run_rows, rows, terms, vocabulary):
    run_rows(rows, terms, DEVICE)
    given = case(9, vocabulary, len(terms), scale=4.0)
    same(ours(given.to(torch.float32, DEVICE), terms), definition(given, terms), 1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_bf16_gradients_survive_a_student_close_to_its_teacher(temperature, divergence):
    """bf16 logits lose such a gradient; the error must also stay under twice that of plain PyTorch with fp32 logits."""
    terms = [Soft(temperature, divergence)]
    bf16 = case(64, 2999, 1, hidden=32, teacher_hidden=(32,), like=0.1, scale=3.0).to(torch.bfloat16)
    exact = definition(bf16.to(torch.float64), terms)
    found = ours(bf16, terms)
    assert [g.dtype for g in found[1]] == [torch.bfloat16] * 3

    def wide_logits(student):
        wide = Case(Projection(*(t.float() for t in student)), bf16.to(torch.float32).teachers, bf16.labels, None)
        losses = reference_losses(wide.student, terms, wide.labels, wide.teachers)
        return (bf16.coefficients * losses).sum()

    plain = gradients(wide_logits, bf16.student)
    for number, error in enumerate(distance(f, e) for f, e in zip(found[1], exact[1], strict=True)):
        assert error <= 3e-3
        assert error <= 2 * distance(plain[1][number], exact[1][number])
    narrow = definition(bf16, terms)
    assert distance(narrow[1][0], exact[1][0]) > 2e-2  # the case is a hard one


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jsd"])
def test_equal_models_have_no_loss_and_no_gradient(run_rows, rows, divergence):
    terms = [Soft(2.0, divergence)]
    run_rows(rows, terms, DEVICE)
    given = case(9, 50, 1, teacher_hidden=(16,), like=0.0)
    value, found = ours(given.to(torch.float32, DEVICE), terms)
    assert abs(value) < 1e-5
    assert all(g.abs().max() < 1e-5 for g in found)


EXTREME = {
    "forward": [Soft(1.0), Hard(0.1)],
    "T=2": [Soft(2.0), Hard()],
    "reverse": [Soft(1.0, "reverse_kl"), Hard()],
    "jsd": [Soft(1.0, "jsd", 0.1), Hard()],
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("terms", EXTREME.values(), ids=EXTREME)
def test_logits_of_plus_and_minus_fifty(run_rows, rows, terms):
    """The two models agree on nothing: what is certain for one underflows for the other."""
    run_rows(rows, terms, DEVICE)
    given = case(20, 300, scale=50.0)
    same(ours(given.to(torch.float32, DEVICE), terms), definition(given, terms), 1e-4)


@pytest.mark.parametrize("rows", ROWS)
def test_non_contiguous_inputs(run_rows, rows):
    """Labels and coefficients too: a kernel that takes a pointer would read what lies between them."""
    terms = [Soft(2.0), Hard()]
    run_rows(rows, terms, DEVICE)
    given = case(12, 40)

    def strided(t):
        wide = t.new_full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan if t.is_floating_point() else 39)
        wide[..., ::2] = t
        return wide[..., ::2]

    narrow = given.to(torch.float32, DEVICE)
    apart = Case(
        Projection(*map(strided, narrow.student)),
        [Projection(*map(strided, narrow.teachers[0]))],
        strided(narrow.labels),
        strided(narrow.coefficients.T).T,
    )
    same(ours(apart, terms), definition(given, terms), 1e-5)


def test_what_the_workspace_held_before_does_not_matter(monkeypatch):
    given = case(21, 65)
    terms = [Soft(2.0), Hard(0.1)]
    exact = definition(given, terms)
    empty = torch.empty

    def poisoned(*shape, **options):
        made = empty(*shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(layout, "block_rows", lambda num_rows, *_: (8, 8, 8))
    monkeypatch.setattr(torch, "empty", poisoned)
    same(ours(given, terms), exact, 1e-11)


@pytest.mark.parametrize("rows", ["native", "triton"])
def test_rows_more_than_2_to_the_31_values_apart(rows):
    """Only two rows of what `empty` promises are ever touched; an int32 offset would wrap around."""
    if rows == "native" and native.library()[0] is None:
        pytest.skip(native.library()[1])
    if rows == "triton" and DEVICE == "cuda":
        pytest.skip("test_gpu.py does it natively")
    run = native.rows if rows == "native" else rows_triton.rows
    try:
        z = torch.empty(2**31 + 64).as_strided((2, 50), (2**31, 1))
    except RuntimeError as error:
        pytest.skip(f"no room for 8 GiB that are never touched: {error}")
    z.copy_(torch.randn(2, 50, generator=torch.Generator().manual_seed(0)))
    before, labels, losses = z.clone(), torch.tensor([3, 4]), torch.empty(1, 2)
    run(Block(z, torch.ones(1, 2), "hard:0.0", losses, z, labels=labels))
    torch.testing.assert_close(losses[0], torch.nn.functional.cross_entropy(before, labels, reduction="none"))
    exact = before.softmax(-1) - torch.nn.functional.one_hot(labels, 50)
    torch.testing.assert_close(z.clone(), exact)


@pytest.mark.parametrize(
    "terms", [TERMS["T=1 and smoothed"], TERMS["jsd"], TERMS["three"]], ids=["one", "jsd", "three"]
)
def test_rows_with_room_behind_them_are_read_whole_and_count_the_same(configure, monkeypatch, terms):
    """On a GPU rows lie a multiple of 64 apart and are read to their end; what stands there is anything."""
    configure(rows="triton")
    plan, empty = layout.plan, torch.empty

    def padded(*arguments, **options):
        found = plan(*arguments, **options)
        return replace(found, leading=-(-found.vocabulary // 64) * 64)

    def poisoned(*shape, **options):
        made = empty(*shape, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(layout, "plan", padded)
    monkeypatch.setattr(torch, "empty", poisoned)
    given = case(9, 5003, len(terms), scale=4.0)
    same(ours(given.to(torch.float32, DEVICE), terms), definition(given, terms), 1e-5)
