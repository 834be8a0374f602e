"""The head losses as operators: autograd, torch.compile, fake tensors, memory, and what a wrong argument is told."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from megadistill.kernels import build, dispatch, native
from megadistill.kernels.head_losses import (
    Hard,
    Projection,
    Soft,
    TopK,
    blocks,
    head_losses,
    head_row_losses,
    linear_ce,
    linear_soft_ce,
    reference_losses,
)
from megadistill.kernels.head_losses import op as implementation
from megadistill.testing.heads import case, definition, distance, gradients, ours

TERMS = [Soft(2.0), Hard(0.1)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def call(given, terms=TERMS, **changes):
    arguments = {"labels": given.labels, "teachers": given.teachers, **changes}
    return head_losses(given.student, terms, given.coefficients, **arguments)


def flat(given):
    """The operator's first arguments."""
    teachers = implementation._flat(given.teachers, None, "geometric", None)
    return (*given.student, given.labels, given.coefficients, *teachers)


@pytest.mark.slow
def test_one_graph_under_torch_compile_with_the_same_bits(configure):
    given = case(15, 40).to(torch.float32)
    eager = ours(given, TERMS)
    torch._dynamo.reset()
    compiled = torch.compile(head_losses, fullgraph=True, backend="aot_eager", dynamic=True)
    found = gradients(
        lambda student: compiled(student, TERMS, given.coefficients, given.labels, given.teachers)[0], given.student
    )
    assert torch.equal(found[0], eager[0])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found[1], eager[1], strict=True))


def test_fake_tensors_have_the_real_ones_shapes():
    given = case(15, 40).to(torch.float32)
    arguments = (
        *given.student,
        given.labels,
        given.coefficients,
        *implementation._flat(given.teachers, None, "geometric", None),
    )
    rest = (implementation.encode(TERMS), [True, False, True], 40)
    real = implementation._forward(*arguments, *rest)
    with FakeTensorMode() as mode:
        fake_arguments = torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, arguments)
        fake = implementation._forward(*fake_arguments, *rest)
    assert [(f.shape, f.dtype) for f in fake] == [(r.shape, r.dtype) for r in real]


def test_the_registration_stands_pytorchs_own_check():
    given = case(5, 11).to(torch.float32)
    student = Projection(*(t.requires_grad_() for t in given.student))
    arguments = (
        *student,
        given.labels,
        given.coefficients,
        *implementation._flat(given.teachers, None, "geometric", None),
    )
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        implementation._forward, (*arguments, implementation.encode(TERMS), [True] * 3, 11), test_utils=checks
    )
    teachers = arguments[5:]
    torch.library.opcheck(
        implementation._row_forward,
        (*student, given.labels, *teachers, implementation.encode(TERMS[:1]), 11),
        test_utils=checks,
    )


def test_differentiating_twice_is_refused_in_words():
    given = case(5, 11)
    hidden = given.student.hidden.requires_grad_()
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(call(given)[0], hidden, create_graph=True)
    rows = head_row_losses(given.student, TERMS[0], None, given.teachers)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(rows.sum(), hidden, create_graph=True)


def test_a_second_backward_through_a_kept_graph_gives_the_same():
    given = case(5, 11)
    hidden = given.student.hidden.requires_grad_()
    total, _ = call(given)
    first, second = (torch.autograd.grad(total, hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_tiny_coefficients_do_not_underflow_in_half_precision():
    """A global batch of ten million tokens: 1e-7 times a probability is 0 in fp16, and a loss scale comes too late."""
    given = case(20, 50, scale=0.3)
    exact = definition(given, TERMS)[1][0]
    half = given.to(torch.float16)
    half.coefficients = 1e-7 * half.coefficients

    def scaled(student):
        return 65536 * 128 * head_losses(student, TERMS, half.coefficients, half.labels, half.teachers)[0]

    found = gradients(scaled, half.student)[1][0]
    assert distance(found.double() / (65536 * 128 * 1e-7), exact) < 5e-3


def test_autocast_computes_in_its_dtype():
    given = case(12, 40).to(torch.float32)
    exact = definition(given.to(torch.bfloat16).to(torch.float64), TERMS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ours(given, TERMS)
    assert found[1][0].dtype == torch.float32
    assert distance(found[1][0], exact[1][0]) < 1e-2


class LargestInside(TorchDispatchMode):
    """Remembers the most values of any tensor made, also inside the operators, which a mode does not enter itself."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        ours_ = {op._opoverload: op._init_fn for op in (implementation._forward, implementation._row_forward)}
        if func in ours_:
            with self:
                return ours_[func](*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() // value.itemsize >= value.numel():
                self.numel = max(self.numel, value.numel())
        return result


@pytest.mark.parametrize("rows", ["eager", "auto"])
@pytest.mark.parametrize("terms", [TERMS, [Soft(2.0, "jsd"), Hard()]], ids=["forward", "jsd"])
@pytest.mark.parametrize("teacher", ["one", "several", "top_k"])
def test_no_tensor_of_a_quarter_of_the_logits_is_ever_made(configure, rows, terms, teacher):
    configure(rows=rows, workspace_mib=1)
    given, options = case(512, 3000).to(torch.float32), {}
    if teacher == "several":
        given.teachers, options = given.teachers * 2, {"mean": "arithmetic"}
    if teacher == "top_k":
        ids = torch.arange(4).expand(512, 4)
        given.teachers, options = [], {"top_k": TopK(ids, torch.full((512, 4), -2.0))}
        terms = [Soft(2.0), Hard()]
    with LargestInside() as largest:
        ours(given, terms, **options)
    assert 3000 * 16 <= largest.numel < 512 * 3000 / 4


def test_nor_where_every_row_has_a_weight_of_its_own(configure):
    configure(workspace_mib=1)
    given = case(512, 3000).to(torch.float32)
    with LargestInside() as largest:
        gradients(lambda student: head_row_losses(student, TERMS[0], None, given.teachers).sum(), given.student)
    assert 3000 * 16 <= largest.numel < 512 * 3000 / 4


def test_a_zero_that_still_reaches_the_head():
    given = case(0, 11)
    value, (hidden, weight, bias) = ours(given, TERMS)
    assert float(value) == 0
    assert (hidden.shape, weight.abs().sum(), bias.abs().sum()) == ((0, 16), 0, 0)


def test_all_rows_ignored_is_zero_and_no_nan():
    given = case(9, 11, 1)
    given.coefficients[:] = 0
    given.labels[:] = -100
    value, found = ours(given, [Hard(0.1)])
    assert float(value) == 0
    assert all(float(g.abs().max()) == 0 for g in found)


@pytest.mark.parametrize("rows", ["eager", "native", "triton", "cuda"])
def test_labels_may_lie_anywhere_in_memory(run_rows, rows):
    """A view that starts between two 16-byte lines; a kernel that assumed alignment would read its neighbours."""
    run_rows(rows, TERMS, DEVICE)
    given = case(9, 31).to(torch.float32, DEVICE)
    shifted = torch.cat([given.labels[:1], given.labels])[1:]
    assert shifted.data_ptr() % 16
    assert float(call(given, labels=shifted)[0]) == float(call(given)[0])


def test_splits_add_up():
    given = case(24, 31)
    whole, parts = ours(given, TERMS), []
    for part in (slice(0, 5), slice(5, 24)):
        piece = case(24, 31)
        piece.student = Projection(piece.student.hidden[part], *piece.student[1:])
        piece.teachers = [Projection(t.hidden[part], *t[1:]) for t in piece.teachers]
        piece.labels, piece.coefficients = piece.labels[part], piece.coefficients[:, part]
        parts.append(ours(piece, TERMS))
    assert distance(parts[0][0] + parts[1][0], whole[0]) < 1e-12
    assert distance(parts[0][1][1] + parts[1][1][1], whole[1][1]) < 1e-12


def test_the_single_losses_are_sums_over_rows():
    given = case(9, 31)
    labels = given.labels.clamp(min=0)
    hard = reference_losses(given.student, [Hard(0.1)], labels).sum()
    soft = reference_losses(given.student, [Soft(2.0)], None, given.teachers).sum()
    torch.testing.assert_close(linear_ce(*given.student, labels, 0.1), hard)
    torch.testing.assert_close(linear_soft_ce(*given.student, *given.teachers[0], 2.0), soft)


WRONG = {
    "labels is None": lambda g: call(g, labels=None),
    r"labels must be int64 \[9\]": lambda g: call(g, labels=g.labels.int()),
    "needs either teachers or top_k": lambda g: call(g, teachers=[]),
    r"teachers\[0\].hidden must have 9 rows": lambda g: call(g, teachers=case(8, 31).teachers),
    "mean must be arithmetic or geometric": lambda g: call(g, mean="harmonic"),
    "one weight for each of the 1 teachers": lambda g: call(g, mixing=[0.5, 0.5]),
    "vocabulary must be in 1 ... 31": lambda g: call(g, vocabulary=32),
    "one temperature for all Soft terms": lambda g: call(
        g, [Soft(1.0), Soft(2.0)], teachers=g.teachers * 2, mean="arithmetic"
    ),
    "divergence must be forward_kl": lambda g: call(
        g, [Soft(1.0, "jsd"), Hard()], teachers=[], top_k=TopK(g.labels[:, None].clamp(min=0), -torch.ones(9, 1))
    ),
    r"coefficients must be \[1, 9\]": lambda g: call(g, [Hard()]),
    "coefficients is on meta, the hidden states on cpu": lambda g: head_losses(
        g.student, TERMS, g.coefficients.to("meta"), g.labels, g.teachers
    ),
    "labels is on meta, the hidden states on cpu": lambda g: call(g, labels=g.labels.to("meta")),
    r"teachers\[0\].bias is on meta": lambda g: call(
        g, teachers=[g.teachers[0]._replace(bias=torch.empty(31, device="meta"))]
    ),
    r"top_k.ids is on meta": lambda g: call(
        g, teachers=[], top_k=TopK(g.labels[:, None].to("meta"), -torch.ones(9, 1))
    ),
    "weight has no rows": lambda g: linear_ce(g.student.hidden, g.student.weight[:0], None, g.labels),
    "rows must be one of auto, triton, cuda, native, eager": lambda g: dispatch.configure(rows="tritonn"),
    "logits must be one of exact, fast": lambda g: dispatch.configure(logits="bf16"),
    "workspace_mib must be at least 1": lambda g: dispatch.configure(workspace_mib=0),
    "terms is empty": lambda g: call(g, []),
    r"student must be hidden \[N, H\]": lambda g: linear_ce(g.student.hidden[:, 1:], *g.student[1:], g.labels),
    "both must be one float dtype": lambda g: linear_ce(g.student.hidden.float(), *g.student[1:], g.labels),
    r"student.bias must be \[31\]": lambda g: linear_ce(*g.student[:2], g.student.bias[1:], g.labels),
    "temperature must be positive": lambda g: Soft(0.0),
    "divergence must be one of": lambda g: Soft(1.0, "kl"),
    "beta must be in": lambda g: Soft(1.0, "jsd", 1.0),
    "smoothing must be in": lambda g: Hard(1.0),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_wrong_argument_is_named(message):
    with pytest.raises(ValueError, match=message):
        WRONG[message](case(9, 31))


def test_labels_out_of_range_are_named_on_request(configure):
    configure(check_labels=True)
    given = case(9, 31)
    call(given)
    given.coefficients[1, 4], given.labels[4] = 1.0, 31
    with pytest.raises(ValueError, match=r"labels must be in 0 ... 30"):
        call(given)


def test_a_workspace_too_small_for_one_row_is_refused(configure):
    """And the one that the error names is large enough."""
    hidden, weight, labels = torch.zeros(9, 1), torch.zeros(300_000, 1), torch.zeros(9, dtype=torch.int64)
    for rows, least in (("eager", 12), ("triton", 2)):
        configure(rows=rows, workspace_mib=1)
        with pytest.raises(ValueError, match=f"workspace_mib=1 does not hold one row: {least} MiB"):
            linear_ce(hidden, weight, None, labels)
        configure(workspace_mib=least)
        linear_ce(hidden, weight, None, labels)


@pytest.mark.parametrize(("vocabulary", "on_gpu"), [(30522, True), (50257, True), (128256, True), (30522, False)])
def test_blocks_fit_the_workspace_and_are_large_enough(vocabulary, on_gpu):
    leading = -(-vocabulary // 64) * 64
    inner, outer, _ = blocks.block_rows(65536, leading, 8, 2 if on_gpu else 0, on_gpu)
    used = leading * (8 * inner + (2 * outer if on_gpu else 0))
    assert used <= max(256 * 2**20 if on_gpu else 32 * 2**20, 256 * leading * 16 if on_gpu else 0)
    if on_gpu:
        assert inner >= 184
        assert outer >= 735


def test_what_cannot_run_says_why(configure):
    configure(rows="triton")
    with pytest.raises(ValueError, match="rows='triton' cannot run here: fp64 has no Triton kernel"):
        call(case(9, 31))


def test_a_compiler_that_fails_leaves_eager_rows_and_the_reason(monkeypatch, tmp_path):
    source = tmp_path / "rows.cpp"
    source.write_text("this is no C++")
    monkeypatch.setattr(native, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(native, "library", native.library.__wrapped__)
    told = dispatch.implementations(torch.device("cpu"))["head_losses"]
    assert "eager rows (csrc/rows.cpp could not be built" in told or "eager rows (no C++ compiler)" in told
    given = case(9, 31).to(torch.float32)
    assert distance(ours(given, TERMS)[0], definition(given, TERMS)[0]) < 1e-5


def test_the_compiled_rows_are_built_once_and_found_again(monkeypatch, tmp_path):
    if native.library()[0] is None:
        pytest.skip(native.library()[1])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.library.__wrapped__()[0] is not None
    (made,) = (tmp_path / "megadistill").iterdir()  # nothing half-made beside it
    monkeypatch.setattr(build.subprocess, "run", None)
    assert native.library.__wrapped__()[0] is not None
    assert made.suffix == ".so"


def test_an_architecture_that_triton_does_not_know_gets_eager_rows_and_the_reason(monkeypatch, configure):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (6, 1))
    told = dispatch.row_implementation(gpu, torch.bfloat16, "hard:0.0", False)
    assert told == ("eager", "compute capability (6, 1) is below 7.0")
    configure(rows="triton")
    with pytest.raises(ValueError, match=r"capability \(6, 1\) is below 7.0; use rows='auto'"):
        dispatch.row_implementation(gpu, torch.bfloat16, "hard:0.0", False)


def test_on_a_gpu_the_kernel_that_was_not_timed_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(dispatch, "_triton_found", lambda: True)
    told = dispatch.implementations(torch.device("cuda"))["head_losses"]
    assert "triton rows" in told
    assert "rows='cuda', which reads logits once, has not been timed" in told


def test_eager_rows_in_place_of_compiled_ones_are_said_once(caplog):
    dispatch._say.cache_clear()
    given = case(5, 11)  # fp64
    with caplog.at_level("INFO", logger="megadistill"):
        call(given)
        call(given)
    assert caplog.messages.count("head losses run eager PyTorch rows: fp64 has no compiled rows") == 1


def test_products_on_a_gpu_keep_to_16_bits_and_their_rows_to_64_columns():
    """An fp32 copy of both heads would leave the matrix units idle; an odd row length their fast loads."""
    assert blocks.block_layout(torch.bfloat16, 50257, True) == (torch.bfloat16, torch.float32, 50304)


def test_few_rows_are_one_block():
    """Not the many small ones that a budget in proportion to the number of rows would give."""
    assert blocks.block_rows(256, 128256, 8, 2, True)[:2] == (256, 256)
    inner, outer, _ = blocks.block_rows(1024, 128256, 8, 2, True)
    assert inner >= 256
    assert outer == 1024
