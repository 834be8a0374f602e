"""The relations' KL in Triton's tiles against its definition in fp64."""

import pytest
import torch

from megadistill.kernels import dispatch
from megadistill.kernels.attention_losses import relation_kl, relation_kl_reference, relation_kl_triton, tiles
from megadistill.testing.heads import distance
from megadistill.testing.made import Made

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _triton(configure):
    configure(rows="triton")


def inputs(length=37, width=12, teacher_width=20, batch=2, heads=1, dtype=torch.float32, like=None):
    """Rows of `length`, some fewer and no attended positions, in two documents each."""
    draw = torch.Generator().manual_seed(0)

    def normal(size):
        return torch.randn(batch, length, heads, size, generator=draw, dtype=torch.float64).transpose(1, 2)

    theirs = [normal(teacher_width) for _ in range(2)]
    ours = [normal(width) for _ in range(2)]
    if like is not None:
        ours = [t + like * normal(teacher_width) for t in theirs]
    lengths = torch.tensor([length, length - length // 3, 0])[:batch]
    mask = torch.arange(length) < lengths[:, None]
    segments = torch.where(mask, 1 + (torch.arange(length) > length // 4), 0)
    moved = [[t.to(DEVICE, dtype) for t in side] for side in (ours, theirs)]
    return [t.requires_grad_() for t in moved[0]], moved[1], mask.to(DEVICE), segments.to(DEVICE)


def both(ours, theirs, *rest, **options):
    """(value, gradients) of three times the loss: Triton's, and the definition's in fp64 from the same numbers."""
    value = relation_kl(*ours, *theirs, *rest, **options)
    found = value.detach(), torch.autograd.grad(3 * value, ours)
    leaves = [t.detach().double().requires_grad_() for t in ours]
    value = relation_kl_reference(*leaves, *(t.double() for t in theirs), *rest)
    return found, (value.detach(), torch.autograd.grad(3 * value, leaves))


def same(found, exact, tolerance):
    assert distance(found[0], exact[0]) <= tolerance
    for ours, theirs in zip(found[1], exact[1], strict=True):
        assert ours.shape == theirs.shape
        assert distance(ours, theirs) <= tolerance


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("packed", [False, True], ids=["a document", "documents"])
def test_fp32_gradients_are_within_1e_5(causal, packed):
    ours, theirs, mask, segments = inputs(batch=3, heads=2)
    same(*both(ours, theirs, mask, segments if packed else None, causal), 1e-5)


@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("like", [None, 0.1], ids=["unrelated", "close"])
def test_bf16_gradients_are_within_3e_3(causal, like, bf16):
    ours, theirs, mask, _ = inputs(70, 16, 16, dtype=bf16, like=like)
    found, exact = both(ours, theirs, mask, None, causal)
    assert {g.dtype for g in found[1]} == {torch.bfloat16}
    assert found[0].dtype == torch.float32
    same(found, exact, 3e-3)


@pytest.mark.parametrize(
    ("batch", "length", "width", "teacher_width"),
    [(0, 5, 4, 4), (1, 0, 4, 4), (1, 1, 1, 3), (3, 33, 64, 1), (2, 5, 130, 16)],
)
def test_odd_shapes(batch, length, width, teacher_width):
    ours, theirs, mask, segments = inputs(length, width, teacher_width, batch)
    same(*both(ours, theirs, mask, segments, True), 1e-5)


def test_any_pattern_of_seen_keys_and_any_scale():
    ours, theirs, mask, segments = inputs()
    seen = (segments[:, None, :, None] == segments[:, None, None, :]).tril()
    found, exact = both(ours, theirs, mask, segments, True)
    for pattern in (seen, seen.mT.contiguous().mT):
        value = relation_kl(*ours, *theirs, mask, seen=pattern)
        same((value.detach(), torch.autograd.grad(3 * value, ours)), exact, 1e-5)
    one = seen[:1].expand(len(mask), -1, -1, -1)  # nothing is copied
    value = relation_kl(*ours, *theirs, mask, seen=one)
    torch.testing.assert_close(value, relation_kl(*ours, *theirs, mask, seen=one.contiguous()))
    ours = [2 * ours[0], ours[1]]
    found, exact = both(ours, theirs, mask)
    value = relation_kl(ours[0] / 2, ours[1], *theirs, mask, scales=(2 * 12**-0.5, 20**-0.5))
    assert distance(value.detach(), exact[0]) < 1e-5
    assert distance(found[0], exact[0]) < 1e-5


def test_a_query_that_sees_nothing_has_no_loss():
    ours, theirs, mask, _ = inputs(5, batch=1)
    seen = torch.zeros(1, 1, 5, 5, dtype=torch.bool, device=DEVICE)
    value = relation_kl(*ours, *theirs, mask, seen=seen)
    assert value.item() == 0
    assert not any(g.any() for g in torch.autograd.grad(value, ours))


def test_values_among_themselves_and_a_frozen_side():
    (values, keys), (theirs, goal), mask, _ = inputs()
    found = torch.autograd.grad(relation_kl(values, values, theirs, theirs, mask), values)
    leaf = values.detach().double().requires_grad_()
    exact = torch.autograd.grad(relation_kl_reference(leaf, leaf, *[theirs.double()] * 2, mask), leaf)
    assert distance(found[0], exact[0]) < 1e-5
    alone = torch.autograd.grad(relation_kl(values, keys.detach(), theirs, goal, mask), values)
    assert torch.equal(alone[0], torch.autograd.grad(relation_kl(values, keys, theirs, goal, mask), values)[0])


def test_what_stands_at_padding_is_not_read():
    ours, theirs, mask, segments = inputs()
    before, _ = both(ours, theirs, mask, segments)
    for t in (*ours, *theirs):
        t.detach().transpose(1, 2)[~mask] = torch.nan
    value = relation_kl(*ours, *theirs, mask, segments)
    assert value.item() == before[0].item()
    assert all(map(torch.equal, torch.autograd.grad(3 * value, ours), before[1]))


def test_equal_relations_have_no_loss_and_no_gradient():
    ours, _, mask, _ = inputs()
    value = relation_kl(*ours, *(t.detach() for t in ours), mask)
    assert value.item() == pytest.approx(0, abs=1e-4)
    assert all(g.abs().max() < 1e-6 for g in torch.autograd.grad(value, ours))


def test_scores_of_plus_and_minus_fifty():
    ours, theirs, mask, _ = inputs(width=16, teacher_width=16)
    ours, theirs = ([t.detach() * 6 for t in side] for side in (ours, theirs))
    assert (ours[0] @ ours[1].mT).abs().max() / 4 > 50
    same(*both([t.requires_grad_() for t in ours], theirs, mask), 1e-4)


def test_no_matrix_of_all_scores_is_made_and_two_numbers_a_query_are_kept():
    batch, heads, length, width = 2, 2, 65, 4
    ours, theirs, mask, segments = inputs(length, width, width, batch, heads)
    kept = []
    with Made((*ours, *theirs)) as made:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
            value = relation_kl(*ours, *theirs, mask, segments)
        value.backward()
    assert sum(t.numel() for t in kept) == sum(t.numel() for t in (*ours, *theirs)) + 2 * batch * heads * length
    assert made.bytes == 4 * batch * heads * length * width  # the gradients
    assert made.bytes < 4 * batch * heads * length * length / 8


def test_triton_is_launched_three_times_and_pytorch_launches_nothing(configure, monkeypatch):
    launched = []
    launch = relation_kl_triton._launch

    def counted(kernel, *rest, **options):
        launched.append(kernel)
        launch(kernel, *rest, **options)

    monkeypatch.setattr(relation_kl_triton, "_launch", counted)
    ours, theirs, mask, _ = inputs(5)
    relation_kl(*ours, *theirs, mask).backward()
    assert len(launched) == 3
    configure(rows="eager")
    relation_kl(*ours, *theirs, mask).backward()
    assert len(launched) == 3


def test_what_has_no_kernel_is_said(configure):
    wide = torch.zeros(1, 1, 2, 257, device=DEVICE)
    mask = torch.ones(1, 2, dtype=torch.bool, device=DEVICE)
    with pytest.raises(ValueError, match=r"rows='triton' cannot run relation_kl here: heads of 257"):
        relation_kl(wide, wide, wide, wide, mask)
    configure(rows="auto")
    assert relation_kl(wide, wide, wide, wide, mask).item() == 0


KIB = {"H200": 227, "A100": 163, "consumer": 99, "Turing": 64}


@pytest.mark.parametrize(
    ("widths", "sizes", "rows"),
    [
        ((64, 64), (2, 2), {"H200": 64, "A100": 64, "consumer": 64, "Turing": 64}),
        ((128, 128), (2, 2), {"H200": 64, "A100": 64, "consumer": 32, "Turing": 32}),
        ((64, 64), (4, 4), {"H200": 32, "A100": 32, "consumer": 32, "Turing": 32}),
        ((64, 256), (4, 2), {"H200": 32, "A100": 32, "consumer": 32, "Turing": 16}),
        ((256, 256), (4, 4), {"H200": 32, "A100": 32, "consumer": 16, "Turing": None}),
    ],
)
def test_tiles_are_the_largest_that_a_gpu_has_shared_memory_for(widths, sizes, rows):
    for name, found in rows.items():
        room = KIB[name] * 1024
        assert tiles.rows(widths, sizes, room) == found
        assert found is None or tiles.shared_bytes(found, widths, sizes) <= room
        assert found is not None or tiles.shared_bytes(16, widths, sizes) > room


@pytest.mark.parametrize(("room", "launched"), [(227, [32] * 3), (99, [16] * 3), (64, [])])
def test_a_smaller_gpu_takes_fewer_rows_at_a_time_or_says_why_it_takes_none(monkeypatch, configure, room, launched):
    """And the result is the same."""
    ours, theirs, mask, segments = inputs(20, 256, 256)
    monkeypatch.setattr(tiles, "available", lambda _: room * 1024)
    found, launch = [], relation_kl_triton._launch

    def noted(kernel, sides, *rest, **options):
        found.append(tiles.chosen(sides))
        launch(kernel, sides, *rest, **options)

    monkeypatch.setattr(relation_kl_triton, "_launch", noted)
    if not launched:
        with pytest.raises(ValueError, match=r"256 and 256 values take 67 KiB .* a block of threads has 64 here"):
            relation_kl(*ours, *theirs, mask, segments)
        configure(rows="auto")
    same(*both(ours, theirs, mask, segments), 1e-5)
    assert found == launched


def test_a_gpu_whose_shared_memory_is_too_small_runs_pytorch_and_says_why(monkeypatch, configure, caplog):
    configure(rows="auto")
    monkeypatch.setattr(tiles, "available", lambda _: 64 * 1024)
    dispatch._say.cache_clear()
    ours, theirs, *_ = inputs(5, 256, 256)
    reason = tiles.why_not((*ours, *theirs))
    with caplog.at_level("INFO", logger="megadistill"):
        found = dispatch.runs_triton("relation_kl", torch.device("cuda"), torch.float32, reason)
    assert found == (False, reason)
    told = (
        "16 rows of heads of 256 and 256 values take 67 KiB of shared memory, of which a block of threads has 64 here"
    )
    assert caplog.messages == [f"relation_kl runs in PyTorch: {told}"]


@pytest.mark.parametrize("rows", ["triton", "eager"])
def test_differentiated_twice_is_refused(configure, rows):
    configure(rows=rows)
    ours, theirs, mask, _ = inputs(5)
    value = relation_kl(*ours, *theirs, mask)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(value, ours, create_graph=True)
