"""The losses between hidden states against their definition in fp64, in PyTorch and Triton."""

from types import SimpleNamespace

import pytest
import torch

from megadistill.kernels import dispatch
from megadistill.kernels.hidden_losses import hidden_losses, hidden_losses_reference, rows_torch, rows_triton
from megadistill.testing.heads import distance
from megadistill.testing.made import Made

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
KINDS = ["squares", "normalized", "cosine"]
WEIGHTS = [1.0, 0.25, 3.0]


@pytest.fixture(params=["eager", "triton"])
def rows(request, configure):
    """Which implementation runs."""
    configure(rows=request.param)
    return request.param


def states(batch=2, length=5, width=19, like=None, dtype=torch.float64, seed=0):
    """Students (leaves), teachers, mask; student = teacher + `like` * noise where given."""
    draw = torch.Generator().manual_seed(seed)

    def normal():
        return torch.randn(batch, length, width, generator=draw, dtype=torch.float64)

    teachers = [normal() for _ in WEIGHTS]
    students = [normal() if like is None else t + like * normal() for t in teachers]
    mask = torch.rand(batch, length, generator=draw) < 0.7
    moved = [[t.to(DEVICE, dtype) for t in side] for side in (students, teachers)]
    return [t.requires_grad_() for t in moved[0]], moved[1], mask.to(DEVICE)


def both(kind, students, teachers, mask):
    """(value, gradients) of three times the loss: ours, and the definition's in fp64 from the same numbers."""
    found = []
    for fn, dtype in ((hidden_losses, students[0].dtype), (hidden_losses_reference, torch.float64)):
        leaves = [t.detach().to(dtype).requires_grad_() for t in students]
        value = fn(kind, leaves, [t.to(dtype) for t in teachers], WEIGHTS, mask)
        found.append((value.detach(), torch.autograd.grad(3 * value, leaves)))
    return found


def same(found, exact, tolerance):
    assert distance(found[0], exact[0]) <= tolerance
    for ours, theirs in zip(found[1], exact[1], strict=True):
        assert ours.shape == theirs.shape
        assert distance(ours, theirs) <= tolerance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [1, 50, None], ids=["a row a tile", "some rows", "one tile"])
def test_equal_to_the_definition(kind, tile, monkeypatch):
    if tile:
        monkeypatch.setattr(rows_torch, "TILE", tile)
    same(*both(kind, *states()), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("like", [None, 0.01], ids=["unrelated", "close"])
def test_fp32_gradients_are_within_1e_5(rows, kind, like):
    same(*both(kind, *states(width=129, like=like, dtype=torch.float32)), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("like", [None, 0.1], ids=["unrelated", "close"])
def test_bf16_gradients_are_within_3e_3(rows, kind, like, bf16):
    given = states(width=129, like=like, dtype=bf16)
    found, exact = both(kind, *given)
    assert {g.dtype for g in found[1]} == {torch.bfloat16}
    assert found[0].dtype == torch.float32
    same(found, exact, 3e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "length", "width"), [(0, 3, 5), (1, 1, 2), (2, 1, 3), (1, 31, 257), (5, 2, 64)])
def test_odd_shapes(rows, kind, batch, length, width):
    same(*both(kind, *states(batch, length, width, dtype=torch.float32)), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_of_another_dtype(rows, kind):
    students, teachers, mask = states(dtype=torch.float32)
    same(*both(kind, students, [t.bfloat16() for t in teachers], mask), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_at_padding_is_not_read(rows, kind):
    students, teachers, mask = states(dtype=torch.float32)
    before, _ = both(kind, students, teachers, mask)
    for t in (*students, *teachers):
        t.detach()[~mask] = torch.nan
    leaves = [t.detach().requires_grad_() for t in students]
    value = hidden_losses(kind, leaves, teachers, WEIGHTS, mask)
    assert value.item() == before[0].item()
    for gradient, kept in zip(torch.autograd.grad(3 * value, leaves), before[1], strict=True):
        assert torch.equal(gradient, kept)
        assert not gradient[~mask].any()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_attended_is_zero_with_a_graph(rows, kind):
    students, teachers, mask = states(dtype=torch.float32)
    value = hidden_losses(kind, students, teachers, WEIGHTS, torch.zeros_like(mask))
    assert value.item() == 0
    assert not any(g.any() for g in torch.autograd.grad(value, students))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_models_have_no_loss_and_no_gradient(rows, kind):
    students, _, mask = states(dtype=torch.float32)
    value = hidden_losses(kind, students, [t.detach() for t in students], WEIGHTS, mask)
    assert value.item() == pytest.approx(0, abs=1e-10)
    assert all(g.abs().max() < 1e-6 for g in torch.autograd.grad(value, students))


@pytest.mark.parametrize(("kind", "expected"), [("normalized", 1.0), ("cosine", 1.0)])
def test_a_state_without_a_direction_has_no_gradient(rows, kind, expected):
    """Not that of 1e8 which a clamped norm gives it."""
    student = torch.zeros(1, 3, device=DEVICE, requires_grad=True)
    teacher = torch.tensor([[1.0, 2.0, 2.0]], device=DEVICE)
    mask = torch.ones(1, dtype=torch.bool, device=DEVICE)
    value = hidden_losses(kind, [student], [teacher], [1.0], mask)
    assert value.item() == pytest.approx(expected)
    assert hidden_losses_reference(kind, [student], [teacher], [1.0], mask).item() == pytest.approx(expected)
    assert not torch.autograd.grad(value, student)[0].any()
    both_zero = hidden_losses(kind, [student], [0 * teacher], [1.0], mask).item()
    assert both_zero == hidden_losses_reference(kind, [student], [0 * teacher], [1.0], mask).item()


@pytest.mark.parametrize("kind", KINDS)
def test_views_of_larger_tensors(rows, kind):
    students, teachers, mask = states(width=6, dtype=torch.float32)
    strided = torch.full((2, 5, 12), torch.nan, device=DEVICE)
    strided[..., ::2] = students[1].detach()
    views = [
        students[0].detach().transpose(0, 1).contiguous().transpose(0, 1),
        strided[..., ::2],
        torch.nn.functional.pad(students[2].detach(), (1, 1), value=torch.nan)[..., 1:-1],
    ]
    assert not any(view.is_contiguous() for view in views)
    for part in (slice(None), slice(0, 1)):  # the second as for states of [CLS]
        ours = [v[:, part].requires_grad_() for v in views]
        found = hidden_losses(kind, ours, [t[:, part] for t in teachers], WEIGHTS, mask[:, part])
        _, exact = both(kind, [t[:, part] for t in students], [t[:, part] for t in teachers], mask[:, part])
        same((found.detach(), torch.autograd.grad(3 * found, ours)), exact, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_that_is_a_view(rows, kind):
    """Of [CLS] alone: the row's next value belongs to another position."""
    students, teachers, mask = states(dtype=torch.float32)
    mask = torch.zeros_like(mask)
    mask[:, 0] = True
    first = [[t.detach()[:, :1] for t in side] for side in (students, teachers)]
    found = hidden_losses(kind, *first, WEIGHTS, mask[:, :1])
    assert found.item() == pytest.approx(hidden_losses(kind, *first, WEIGHTS, mask[:, :1].clone()).item(), rel=1e-6)


def test_through_a_projection(rows):
    """TinyBERT's: student's width to the teacher's; gradients of state, weight and bias."""
    students, teachers, mask = states(width=9, dtype=torch.float32)
    leaves = [students[0].detach()[..., :5], torch.randn(9, 5, device=DEVICE), torch.randn(9, device=DEVICE)]
    found = []
    for fn, dtype in ((hidden_losses, torch.float32), (hidden_losses_reference, torch.float64)):
        given = [t.to(dtype).requires_grad_() for t in leaves]
        value = fn("squares", [torch.nn.functional.linear(*given)], [teachers[0].to(dtype)], [1 / 9], mask)
        found.append((value.detach(), torch.autograd.grad(value, given)))
    same(*found, 1e-5)


def test_all_layers_are_one_launch_each_way(configure, monkeypatch):
    configure(rows="triton")
    launches = []

    class Counted:
        def __getitem__(self, grid):
            launches.append(grid)
            return kernel[grid]

    kernel = rows_triton._kernel
    monkeypatch.setattr(rows_triton, "_kernel", Counted())
    students, teachers, mask = states(dtype=torch.float32)
    hidden_losses("cosine", students, teachers, WEIGHTS, mask).backward()
    assert launches == [(mask.numel(),)] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_kept_but_the_states_and_no_state_is_copied(rows, kind, monkeypatch):
    monkeypatch.setattr(rows_torch, "TILE", 64)
    students, teachers, mask = states(dtype=torch.float32, width=32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        value = hidden_losses(kind, students, teachers, WEIGHTS, mask)
    assert {t.untyped_storage().data_ptr() for t in kept} == Made([*students, *teachers, mask]).known
    op = rows_torch if rows == "eager" else rows_triton
    flat = [[t.detach().flatten(0, 1) for t in side] for side in (students, teachers)]
    with Made([*students, *teachers]) as made:
        again = op.loss(kind, *flat, WEIGHTS, mask.flatten())
    assert again.item() == value.item()
    tile = 4 * students[0].numel() if DEVICE == "cuda" and rows == "eager" else 4 * 64  # a GPU takes a layer at once
    assert 0 < made.bytes <= tile


def test_compiled_code_gives_the_same(configure):
    configure(rows="eager")
    students, teachers, mask = states(dtype=torch.float32)

    def fn(*ours):
        return 2 * hidden_losses("cosine", [2 * t for t in ours], teachers, WEIGHTS, mask)

    values = [f(*students) for f in (fn, torch.compile(fn, backend="aot_eager", fullgraph=True))]
    torch.testing.assert_close(*values)
    for ours, theirs in zip(*(torch.autograd.grad(v, students) for v in values), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_backward_twice_but_not_twice_differentiated():
    students, teachers, mask = states()
    value = hidden_losses("cosine", students, teachers, WEIGHTS, mask)
    first = torch.autograd.grad(value, students, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(value, students, retain_graph=True)))
    with pytest.raises(RuntimeError, match="hidden_losses cannot be differentiated twice"):
        torch.autograd.grad(value, students, create_graph=True)


def test_what_does_not_fit_is_named(configure):
    students, teachers, mask = states(dtype=torch.float32)
    with pytest.raises(ValueError, match="kind must be one of squares, normalized, cosine"):
        hidden_losses("mse", students, teachers, WEIGHTS, mask)
    with pytest.raises(ValueError, match="one for each layer, not 3, 3 and 2"):
        hidden_losses("cosine", students, teachers, WEIGHTS[:2], mask)
    with pytest.raises(ValueError, match=r"teachers\[2\] must be float \[2, 5, 19\]"):
        hidden_losses("cosine", students, [*teachers[:2], teachers[2][..., 1:]], WEIGHTS, mask)
    with pytest.raises(ValueError, match=r"mask must be bool \[2, 5\]"):
        hidden_losses("cosine", students, teachers, WEIGHTS, mask.long())
    with pytest.raises(ValueError, match="mask is on meta"):
        hidden_losses("cosine", students, teachers, WEIGHTS, mask.to("meta"))
    with pytest.raises(ValueError, match="at least one value"):
        hidden_losses("cosine", [t[..., :0] for t in students], teachers, WEIGHTS, mask)
    configure(rows="triton")
    with pytest.raises(ValueError, match=r"rows='triton' cannot run hidden_losses here: fp64"):
        hidden_losses("cosine", [t.double() for t in students], teachers, WEIGHTS, mask)
    wide = torch.zeros(1, 16385, device=DEVICE)
    with pytest.raises(ValueError, match="16385 values are wider than 16384"):
        hidden_losses("cosine", [wide], [wide], [1.0], mask.flatten()[:1])


def test_a_fallback_on_a_gpu_is_logged_once(monkeypatch):
    said = []
    monkeypatch.setattr(dispatch.log, "get", lambda: SimpleNamespace(warning=said.append))
    for _ in range(2):
        runs = dispatch.runs_triton("some_loss", torch.device("cuda"), torch.float32, "heads of 257 values are wide")
    assert runs == (False, "heads of 257 values are wide")
    assert said == ["some_loss runs in PyTorch: heads of 257 values are wide"]


def test_what_runs_is_told():
    told = dispatch.implementations(torch.device("cpu"))
    assert told["hidden_losses"] == told["relation_kl"] == "eager (on cpu there is PyTorch only)"
