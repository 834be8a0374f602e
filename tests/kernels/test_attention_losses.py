"""The attention losses against their definitions, and that no [B, heads, L, L] matrix is made."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megadistill.kernels.attention_losses import (
    relation_kl,
    relation_kl_reference,
    score_mse,
    score_mse_reference,
)


def inputs(batch=3, heads=2, length=7, width=4, teacher_width=5, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    ours = [torch.randn(batch, heads, length, width, generator=draw, dtype=torch.float64).to(dtype) for _ in range(2)]
    theirs = [torch.randn(batch, heads, length, teacher_width, generator=draw, dtype=torch.float64) for _ in range(2)]
    lengths = torch.tensor([length, 3, 1])[:batch]
    mask = torch.arange(length) < lengths[:, None]
    segments = torch.where(mask, 1 + (torch.arange(length) > 2), 0)
    return [t.requires_grad_() for t in ours], [t.to(dtype) for t in theirs], mask, segments


def both(op, reference, ours, *rest):
    found = []
    for fn in (op, reference):
        value = fn(*ours, *rest)
        found.append([value.detach(), *torch.autograd.grad(3 * value, ours)])
    return found


@pytest.fixture(params=[1, 30, None], ids=["a row a block", "some rows", "one block"])
def blocks(request, monkeypatch):
    if request.param:
        monkeypatch.setitem(relation_kl.__globals__, "BLOCK_VALUES", request.param)
        monkeypatch.setitem(score_mse.__globals__, "CHUNK_VALUES", request.param)


def test_score_mse_is_the_gram_form_of_its_definition(blocks):
    ours, theirs, mask, _ = inputs()
    torch.testing.assert_close(*both(score_mse, score_mse_reference, ours, *theirs, mask), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_relation_kl_equals_its_definition(blocks, causal, packed):
    ours, theirs, mask, segments = inputs()
    rest = (*theirs, mask, segments if packed else None, causal)
    torch.testing.assert_close(*both(relation_kl, relation_kl_reference, ours, *rest), rtol=1e-11, atol=1e-11)


def test_any_pattern_of_seen_keys_and_any_scale(blocks):
    ours, theirs, mask, segments = inputs()
    seen = (segments[:, None, :, None] == segments[:, None, None, :]).tril()
    exact = relation_kl_reference(*ours, *theirs, mask, segments, True)
    assert relation_kl(*ours, *theirs, mask, seen=seen).item() == pytest.approx(exact.item(), rel=1e-11)
    doubled = [2 * ours[0], ours[1]]
    exact = relation_kl_reference(*doubled, *theirs, mask)
    assert relation_kl(*ours, *theirs, mask, scales=(1.0, 5**-0.5)).item() == pytest.approx(exact.item(), rel=1e-11)
    exact = score_mse_reference(*doubled, *theirs, mask)
    assert score_mse(*ours, *theirs, mask, scales=(1.0, 5**-0.5)).item() == pytest.approx(exact.item(), rel=1e-11)


def test_relations_of_values_among_themselves():
    (values, _), (theirs, _), mask, _ = inputs()
    found = []
    for fn in (relation_kl, relation_kl_reference):
        value = fn(values, values, theirs, theirs, mask)
        found.append([value.detach(), *torch.autograd.grad(value, values)])
    torch.testing.assert_close(*found, rtol=1e-11, atol=1e-11)


def test_score_mse_of_models_that_agree_does_not_cancel():
    """fp32 Gram matrices lose the loss (2 % off) when student and teacher are close."""
    ours, _, mask, _ = inputs(length=64, batch=1, width=32, dtype=torch.float32)
    theirs = [(t.detach().double() + 1e-4 * torch.randn(t.shape, dtype=torch.float64)).float() for t in ours]
    exact = score_mse_reference(*(t.detach().double() for t in (*ours, *theirs)), mask)
    assert score_mse(*ours, *theirs, mask).item() == pytest.approx(float(exact), rel=1e-5)


def test_equal_relations_have_no_loss_and_no_gradient():
    ours, _, mask, _ = inputs()
    theirs = [t.detach() for t in ours]
    value = relation_kl(*ours, *theirs, mask)
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert all(float(g.abs().max()) < 1e-12 for g in torch.autograd.grad(value, ours))


def test_bf16_inputs_are_multiplied_in_fp32():
    ours, theirs, mask, _ = inputs(length=32, width=16, teacher_width=16, dtype=torch.bfloat16)
    exact = torch.autograd.grad(relation_kl_reference(*(t.double() for t in (*ours, *theirs)), mask), ours)
    found = torch.autograd.grad(relation_kl(*ours, *theirs, mask), ours)
    assert [g.dtype for g in found] == [torch.bfloat16] * 2
    assert all((f - e).norm() / e.norm() < 3e-3 for f, e in zip(found, exact, strict=True))


class Largest(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.numel = max(self.numel, result.numel())
        return result


@pytest.mark.parametrize("op", [score_mse, relation_kl])
def test_no_matrix_of_all_scores_is_made(op, monkeypatch):
    for fn, name in ((relation_kl, "BLOCK_VALUES"), (score_mse, "CHUNK_VALUES")):
        monkeypatch.setitem(fn.__globals__, name, 1 << 14)
    batch, heads, length = 3, 2, 256
    ours, theirs, mask, _ = inputs(batch, heads, length)
    with Largest() as largest:
        op(*ours, *theirs, mask).backward()
    assert 0 < largest.numel < batch * heads * length * length / 8


def test_wrong_shapes_are_named():
    ours, theirs, mask, segments = inputs()
    with pytest.raises(ValueError, match="keys is"):
        score_mse(ours[0], ours[1][:, :1], *theirs, mask)
    with pytest.raises(ValueError, match="teacher_queries is"):
        relation_kl(*ours, theirs[0][:1], theirs[1][:1], mask)
    with pytest.raises(ValueError, match="mask must be bool"):
        relation_kl(*ours, *theirs, mask.long())
    with pytest.raises(ValueError, match="segments must be"):
        relation_kl(*ours, *theirs, mask, segments[:1])
    with pytest.raises(ValueError, match="queries must be"):
        score_mse(ours[0][0], ours[1][0], *theirs, mask)


@pytest.mark.parametrize("op", [score_mse, relation_kl])
def test_other_devices_and_dtypes_are_named(op):
    ours, theirs, mask, segments = inputs()
    with pytest.raises(ValueError, match="teacher_keys is on meta"):
        op(*ours, theirs[0], theirs[1].to("meta"), mask)
    with pytest.raises(ValueError, match="mask is on meta"):
        op(*ours, *theirs, mask.to("meta"))
    with pytest.raises(ValueError, match="teacher_queries must be float"):
        op(*ours, theirs[0].long(), theirs[1], mask)
    if op is relation_kl:
        with pytest.raises(ValueError, match="segments is on meta"):
            op(*ours, *theirs, mask, segments.to("meta"))
        with pytest.raises(ValueError, match="seen must be bool"):
            op(*ours, *theirs, mask, seen=torch.ones(len(mask), 1, mask.shape[1], mask.shape[1]))
