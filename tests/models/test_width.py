"""Students narrower than their teacher: what slicing keeps, and what the principal directions are."""

import pytest
import torch

from megadistill.core.errors import UserError
from megadistill.models.initialize import copy_teacher_layers
from megadistill.models.width import principal
from megadistill.testing import tiny

NARROW = {
    "bert": {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 1},
    "roberta": {"hidden_size": 8, "intermediate_size": 12},
    "distilbert": {"dim": 8, "hidden_dim": 12, "n_heads": 1},
    "albert": {"hidden_size": 8, "intermediate_size": 12},
    "modernbert": {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 1},
    "gpt2": {"n_embd": 8, "n_head": 1},
    "llama": {"hidden_size": 8, "intermediate_size": 12, "head_dim": 8, "num_key_value_heads": 1},
    "qwen2": {"hidden_size": 8, "intermediate_size": 12, "head_dim": 8, "num_key_value_heads": 1},
    "qwen3": {"hidden_size": 8, "intermediate_size": 12, "num_key_value_heads": 1},
}
FULL = {"distilbert": {"dim": 16}}
WIDTHS = [(name, width) for name in tiny.FAMILIES for width in ("slice", "svd") if (name, width) != ("albert", "svd")]


def pair(name, **changed):
    return tiny.language_model(name, 2, seed=1), tiny.language_model(name, 2, seed=2, **{**NARROW[name], **changed})


@pytest.mark.parametrize(("name", "width"), WIDTHS)
def test_every_weight_of_a_narrower_student_comes_from_its_teacher(name, width):
    teacher, student = pair(name)
    copied = copy_teacher_layers(student.hf, teacher.hf, "first", width)
    assert copied == sum(v.numel() for v in student.hf.state_dict().values())
    signals = student.eval().signals(tiny.batch(3), frozenset({-1}))
    assert bool(signals.hidden[-1].isfinite().all())


@pytest.mark.parametrize("width", ["slice", "svd"])
def test_as_many_positions_or_entries_as_the_model_is_wide_are_no_width(width):
    sizes = {"n_positions": tiny.WIDTH, "vocab_size": tiny.WIDTH}
    teacher = tiny.language_model("gpt2", 2, seed=1, **sizes)
    student = tiny.language_model("gpt2", 2, seed=2, **sizes, **NARROW["gpt2"])
    copy_teacher_layers(student.hf, teacher.hf, "first", width)
    basis = torch.eye(tiny.WIDTH)[:, :8] if width == "slice" else principal(teacher.hf, 8).float()
    for table in ("wte", "wpe"):
        theirs, ours = (getattr(model.hf.transformer, table).weight for model in (teacher, student))
        torch.testing.assert_close(ours, theirs @ basis)


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_equal_sizes_make_slicing_a_copy(name):
    teacher, student = tiny.language_model(name, 2, seed=1), tiny.language_model(name, 2, seed=2)
    copy_teacher_layers(student.hf, teacher.hf, "first", "slice")
    theirs = teacher.hf.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in student.hf.state_dict().items())


def test_heads_and_residual_stream_are_sliced_apart():
    """Two heads of 8 become two of 4: the first 4 of each, not the first 8 of the row."""
    teacher, student = pair("bert", num_attention_heads=2)
    copy_teacher_layers(student.hf, teacher.hf, "first", "slice")
    theirs, ours = (m.hf.bert.encoder.layer[0].attention for m in (teacher, student))
    rows = [0, 1, 2, 3, 8, 9, 10, 11]
    assert torch.equal(ours.self.query.weight, theirs.self.query.weight[rows][:, :8])
    assert torch.equal(ours.self.query.bias, theirs.self.query.bias[rows])
    assert torch.equal(ours.output.dense.weight, theirs.output.dense.weight[:8][:, rows])


def test_fused_projections_are_sliced_part_by_part():
    teacher, student = pair("gpt2")
    copy_teacher_layers(student.hf, teacher.hf, "first", "slice")
    theirs, ours = (m.hf.transformer.h[0].attn.c_attn.weight for m in (teacher, student))
    for ours_part, theirs_part in zip(ours.chunk(3, 1), theirs.chunk(3, 1), strict=True):
        assert torch.equal(ours_part, theirs_part[:8, :8])


def test_the_principal_directions_give_the_best_embeddings_of_that_width():
    """E P P' is the truncated SVD of E: no other 8 dimensions keep more of the table."""
    teacher, student = pair("gpt2")
    table = teacher.hf.get_input_embeddings().weight.detach().double()
    copy_teacher_layers(student.hf, teacher.hf, "first", "svd")
    basis = principal(teacher.hf, 8)
    u, s, v = torch.linalg.svd(table, full_matrices=False)
    best = u[:, :8] @ torch.diag(s[:8]) @ v[:8]
    kept = student.hf.get_input_embeddings().weight.detach().double() @ basis.T
    assert float((kept - best).norm() / best.norm()) < 1e-5
    sliced = table[:, :8]
    assert float((table - kept).norm()) < float(table[:, 8:].norm())
    assert kept.shape == table.shape
    assert sliced.shape == (tiny.VOCABULARY, 8)
    assert torch.allclose(basis.T @ basis, torch.eye(8, dtype=torch.float64), atol=1e-9)


@pytest.mark.parametrize(
    ("name", "changed", "width", "message"),
    [
        ("bert", {"hidden_size": 24, "num_attention_heads": 2}, "slice", "hidden_size: 24, the teacher's is 16"),
        ("bert", {"intermediate_size": 64}, "slice", "intermediate_size: 64, the teacher's is 32"),
        ("llama", {"head_dim": 4, "num_attention_heads": 2}, "slice", "rotary embedding turns in pairs"),
        ("llama", {"num_attention_heads": 1}, "slice", "1 queries a key head, the teacher has 2"),
        ("albert", {}, "svd", "factorised"),
    ],
)
def test_students_that_cannot_be_cut_from_the_teacher_are_refused(name, changed, width, message):
    teacher, student = pair(name, **changed)
    with pytest.raises(UserError, match=message) as caught:
        copy_teacher_layers(student.hf, teacher.hf, "first", width)
    caught.match(r"student\.init\.width")
