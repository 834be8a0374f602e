"""The chunked head losses against their definitions: value and every gradient, across shapes and chunk sizes."""

import pytest
import torch

from megadistill.kernels import chunks
from megadistill.kernels.linear_ce import linear_ce, linear_ce_reference
from megadistill.kernels.linear_soft_ce import linear_soft_ce, linear_soft_ce_reference

FIXTURE_STUDENT = [[1.0, 2, 3], [0, 0, 0], [0.5, -1, 2]]
FIXTURE_TEACHER = [[3.0, 2, 1], [1, 0, -1], [2, -1, 0.5]]


def inputs(rows, vocabulary, dtype=torch.float64, bias=True, seed=0, teacher_extra=0):
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    student = [normal(rows, 7), normal(vocabulary, 7), normal(vocabulary) if bias else None]
    vt = vocabulary + teacher_extra
    teacher = [normal(rows, 5), normal(vt, 5), normal(vt) if bias else None]
    labels = torch.randint(0, vocabulary, (rows,), generator=draw)
    return [t.requires_grad_() if t is not None else None for t in student], teacher, labels


def compare(op, reference, leaves, rtol):
    results = []
    for fn in (op, reference):
        for leaf in leaves:
            leaf.grad = None
        value = fn()
        (3.0 * value).backward()
        results.append([value.detach(), *[leaf.grad.clone() for leaf in leaves]])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol)


@pytest.fixture(params=[1, 4096], ids=["many chunks", "one chunk"])
def workspace(request, monkeypatch):
    rows_per_chunk = request.param

    def sliced(num_rows, vocabulary, num_buffers, workspace_mib=0):
        return (slice(i, min(i + rows_per_chunk, num_rows)) for i in range(0, num_rows, rows_per_chunk))

    for module in ("linear_soft_ce", "linear_ce"):
        monkeypatch.setattr(f"megadistill.kernels.{module}.chunked.chunks", sliced)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("bias", [True, False])
def test_soft_ce_equals_its_definition(workspace, temperature, bias):
    student, teacher, _ = inputs(37, 101, bias=bias)
    leaves = [t for t in student if t is not None]
    compare(
        lambda: linear_soft_ce(*student, *teacher, temperature),
        lambda: linear_soft_ce_reference(*student, *teacher, temperature),
        leaves,
        1e-12,
    )


@pytest.mark.parametrize("bias", [True, False])
def test_hard_ce_equals_its_definition(workspace, bias):
    student, _, labels = inputs(37, 101, bias=bias)
    leaves = [t for t in student if t is not None]
    compare(lambda: linear_ce(*student, labels), lambda: linear_ce_reference(*student, labels), leaves, 1e-12)


@pytest.mark.parametrize(
    ("temperature", "mean", "gradient_norm"),
    [(1.0, 0.7083187360, 0.4579693475), (2.0, 0.7971552395, 0.5072233030), (4.0, 0.8239160682, 0.5218983315)],
)
def test_soft_ce_on_hand_checkable_numbers(temperature, mean, gradient_norm):
    student = torch.tensor(FIXTURE_STUDENT[:2], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor(FIXTURE_TEACHER[:2], dtype=torch.float64)
    eye = torch.eye(3, dtype=torch.float64)
    value = linear_soft_ce(student, eye, None, teacher, eye, None, temperature) / 2
    value.backward()
    assert value.item() == pytest.approx(mean, abs=1e-9)
    assert student.grad.norm().item() == pytest.approx(gradient_norm, abs=1e-9)


def test_hard_ce_on_hand_checkable_numbers():
    student = torch.tensor(FIXTURE_STUDENT[:2], dtype=torch.float64)
    value = linear_ce(student, torch.eye(3, dtype=torch.float64), None, torch.tensor([0, 2])) / 2
    assert value.item() == pytest.approx(1.7531091266, abs=1e-9)


def test_padded_teacher_entries_do_not_count():
    student, teacher, _ = inputs(9, 20, teacher_extra=4)
    cut = [teacher[0], teacher[1][:20], teacher[2][:20]]
    assert linear_soft_ce(*student, *teacher, 2.0).item() == linear_soft_ce(*student, *cut, 2.0).item()


def test_no_rows_is_a_zero_that_still_reaches_the_head():
    student, teacher, labels = inputs(3, 11)
    empty = student[0][:0]
    total = linear_ce(empty, *student[1:], labels[:0]) + linear_soft_ce(
        empty, *student[1:], teacher[0][:0], *teacher[1:]
    )
    total.backward()
    assert total.item() == 0
    assert student[1].grad.abs().sum() == 0


def test_bf16_gradient_survives_a_student_close_to_its_teacher():
    """bf16 logits lose such a gradient (7e-2); fp32 ones keep it."""
    draw = torch.Generator().manual_seed(1)
    hidden = torch.randn(64, 32, generator=draw, dtype=torch.float64).bfloat16()
    weight = (torch.randn(999, 32, generator=draw, dtype=torch.float64) * 0.5).bfloat16()
    teacher = (hidden.double() + 0.05 * torch.randn(64, 32, generator=draw, dtype=torch.float64)).bfloat16()

    def gradient(dtype, fn):
        leaf = hidden.to(dtype).requires_grad_()
        fn(leaf, weight.to(dtype), None, teacher.to(dtype), weight.to(dtype), None, 2.0).backward()
        return leaf.grad.double()

    exact = gradient(torch.float64, linear_soft_ce_reference)
    ours = gradient(torch.bfloat16, linear_soft_ce)
    eager = gradient(torch.bfloat16, linear_soft_ce_reference)
    assert (ours - exact).norm() / exact.norm() < 4e-3
    assert (eager - exact).norm() / exact.norm() > 4e-2


def test_chunks_cover_every_row_once_within_the_workspace():
    slices = list(chunks.chunks(1000, 30522, num_buffers=4, workspace_mib=16))
    assert [i for s in slices for i in range(s.start, s.stop)] == list(range(1000))
    assert all((s.stop - s.start) * 30522 * 4 * 4 <= 16 * 2**20 for s in slices)
