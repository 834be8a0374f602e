"""What only a GPU can show: Triton and CUDA C++ at real vocabularies, memory, and that the host never waits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from megadistill.kernels.attention_losses import relation_kl
from megadistill.kernels.head_losses import (
    Hard,
    Projection,
    Soft,
    head_losses,
    linear_ce,
    op,
    rows_cuda,
    rows_triton,
)
from megadistill.kernels.head_losses.rows_torch import Block
from megadistill.kernels.hidden_losses import hidden_losses
from megadistill.testing.heads import Case, case, definition, distance, gradients, ours

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

ROWS = ["triton", "cuda"]
TERMS = {
    "soft T=1": [Soft(1.0)],
    "soft T=2, hard": [Soft(2.0), Hard()],
    "soft T=4, smoothed": [Soft(4.0), Hard(0.1)],
    "hard": [Hard()],
    "reverse": [Soft(2.0, "reverse_kl"), Hard()],
    "jsd": [Soft(2.0, "jsd", 0.3), Hard()],
    "three": [Soft(2.0), Soft(1.0, "jsd"), Hard(0.1)],
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("vocabulary", [1023, 30522, 50257])
@pytest.mark.parametrize("terms", TERMS.values(), ids=TERMS)
def test_bf16_gradients_are_within_3e_3(run_rows, rows, vocabulary, terms):
    run_rows(rows, terms, "cuda")
    given = case(300, vocabulary, len(terms), hidden=64, teacher_hidden=(96,), scale=4.0).to(torch.bfloat16, "cuda")
    exact = definition(given.to(torch.float64, "cuda"), terms)
    found = ours(given, terms)
    assert distance(found[0], exact[0]) <= 1e-4
    assert all(distance(mine, theirs) <= 3e-3 for mine, theirs in zip(found[1], exact[1], strict=True))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_a_student_close_to_its_teacher_keeps_its_gradient(run_rows, rows, temperature):
    terms = [Soft(temperature)]
    run_rows(rows, terms, "cuda")
    given = case(256, 30522, 1, hidden=64, teacher_hidden=(64,), like=0.1, scale=4.0).to(torch.bfloat16, "cuda")
    exact = definition(given.to(torch.float64, "cuda"), terms)
    found = ours(given, terms)
    assert all(distance(mine, theirs) <= 3e-3 for mine, theirs in zip(found[1], exact[1], strict=True))


@pytest.mark.parametrize("rows", ROWS)
def test_fast_logits_are_as_exact_as_a_plain_linear(configure, run_rows, rows):
    run_rows(rows, [Soft(2.0), Hard()], "cuda")
    given = case(256, 30522, hidden=64, teacher_hidden=(64,), scale=4.0).to(torch.bfloat16, "cuda")
    terms = [Soft(2.0), Hard()]
    exact, plain = definition(given.to(torch.float64, "cuda"), terms), definition(given, terms)
    configure(logits="fast")
    assert distance(ours(given, terms)[1][0], exact[1][0]) <= 2 * distance(plain[1][0], exact[1][0]) + 1e-3


@pytest.mark.parametrize("rows", ROWS)
def test_the_host_never_waits(run_rows, rows):
    run_rows(rows, [Soft(2.0), Hard()], "cuda")
    given = case(512, 5003, hidden=64, teacher_hidden=(64,)).to(torch.bfloat16, "cuda")
    terms = [Soft(2.0), Hard()]
    ours(given, terms)  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours(given, terms)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    ("dtype", "terms"),
    [(torch.bfloat16, TERMS["soft T=2, hard"]), (torch.float32, TERMS["three"])],
    ids=["bf16", "fp32, twice over the logits"],
)
def test_memory_is_the_workspace_and_the_gradients(configure, dtype, terms):
    rows, width, vocabulary, mib = 8192, 64, 30522, 64
    configure(workspace_mib=mib)

    def head():
        return Projection(*(torch.randn(n, width, device="cuda", dtype=dtype) for n in (rows, vocabulary)))

    labels = torch.randint(0, vocabulary, (rows,), device="cuda")
    given = Case(head(), [head()], labels, torch.ones(len(terms), rows, device="cuda") / rows)
    ours(given, terms)  # compiles
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ours(given, terms)
    sums = 16 * width * (rows + vocabulary)  # the leaves, fp32 sums, results
    assert torch.cuda.max_memory_allocated() - before <= mib * 2**20 + sums + 8 * 2**20


@pytest.mark.parametrize("kind", ROWS)
def test_more_than_2_to_the_31_logits(run_rows, kind):
    """Rows past 2^31 values: an int32 offset would wrap around silently."""
    run_rows(kind, [Hard()], "cuda")
    rows, vocabulary = 14_400, 151_936
    z = torch.empty(rows, vocabulary, device="cuda", dtype=torch.bfloat16)
    z[-1] = torch.randn(vocabulary, device="cuda")
    last = z[-1].double()
    labels = torch.full((rows,), 7, device="cuda")
    z[:-1] = 0
    losses = torch.empty(1, rows, device="cuda")
    ones = torch.ones(1, rows, device="cuda")
    run = rows_cuda.rows if kind == "cuda" else rows_triton.rows
    run(Block(z, ones, "hard:0.0", losses, z, labels=labels))
    assert distance(losses[0, -1], -last.log_softmax(-1)[7]) < 1e-5
    gradient = last.softmax(-1)
    gradient[7] -= 1
    assert distance(z[-1], gradient) < 5e-3


def test_states_and_heads_more_than_2_to_the_31_values_apart():
    """An int32 offset would read elsewhere."""
    step, width = 2**31 + 1024, 48
    far = torch.zeros(step + 8 * width, device="cuda", dtype=torch.bfloat16)
    states = far.as_strided((2, width), (step, 1)).copy_(torch.randn(2, width))
    goal, mask = torch.randn_like(states), torch.ones(2, dtype=torch.bool, device="cuda")
    found = hidden_losses("normalized", [states], [goal], [1.0], mask)
    near = states.clone()
    torch.testing.assert_close(found, hidden_losses("normalized", [near], [goal], [1.0], mask))
    heads = far.as_strided((2, 1, 8, width), (step, 0, width, 1)).copy_(torch.randn(2, 1, 8, width))
    goals, mask = torch.randn_like(heads), torch.ones(2, 8, dtype=torch.bool, device="cuda")
    values, gradients_ = [], []
    for given in (heads, heads.clone()):
        leaf = given.detach().requires_grad_()
        values.append(relation_kl(leaf, leaf, goals, goals, mask))
        gradients_.append(torch.autograd.grad(values[-1], leaf)[0])
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients_)


@pytest.mark.parametrize("op", ["hidden", "relation"])
def test_the_host_never_waits_for_states_or_relations(op):
    states = torch.randn(4, 8, 64, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    goals, mask = torch.randn_like(states), torch.ones(4, 64, dtype=torch.bool, device="cuda")

    def run():
        if op == "relation":
            relation_kl(states, states, goals, goals, mask, causal=True).backward()
        else:
            hidden_losses(
                "cosine", [states[:, 0], states[:, 1]], [goals[:, 0], goals[:, 1]], [1.0, 0.5], mask
            ).backward()

    run()  # compiles
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_long_relation_takes_no_memory_of_its_square():
    length = 8192
    sides = [torch.randn(1, 8, length, 64, device="cuda", dtype=torch.bfloat16) for _ in range(4)]
    mask = torch.ones(1, length, dtype=torch.bool, device="cuda")
    leaves = [t.requires_grad_() for t in sides[:2]]
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    relation_kl(*leaves, *sides[2:], mask).backward()
    assert torch.cuda.max_memory_allocated() - before <= 4 * leaves[0].numel() * 2 + 2**23


@pytest.mark.parametrize("kind", ROWS)
def test_more_rows_than_a_grid_is_wide_in_its_other_directions(run_rows, configure, kind):
    run_rows(kind, [Hard()], "cuda")
    configure(workspace_mib=1024)
    hidden, weight = torch.randn(70_000, 16, device="cuda"), torch.randn(64, 16, device="cuda")
    labels = torch.randint(0, 64, (70_000,), device="cuda")
    exact = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().T, labels, reduction="sum")
    assert distance(linear_ce(hidden, weight, None, labels), exact) < 1e-5


def test_a_shorter_teacher_has_no_nan_in_fp16(configure):
    """fp16 does not reach to what stands for a logit of -inf."""
    configure(logits="fast")
    given = case(64, 500, hidden=64, teacher_hidden=(64,)).to(torch.float16, "cuda")
    given.teachers = case(64, 400, hidden=64, teacher_hidden=(64,)).to(torch.float16, "cuda").teachers
    terms = [Soft(2.0), Hard()]
    exact = definition(given.to(torch.float64, "cuda"), terms)
    found = ours(given, terms)
    assert distance(found[0], exact[0]) < 1e-2
    assert all(distance(mine, theirs) < 2e-2 for mine, theirs in zip(found[1], exact[1], strict=True))


class Products(TorchDispatchMode):
    """The dtypes that matrices are multiplied in, also inside the operator."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.megadistill.head_losses.default:
            with self:
                return op._forward._init_fn(*args, **(kwargs or {}))
        if "mm" in str(func):
            self.dtypes |= {t.dtype for t in [t for t in args if isinstance(t, torch.Tensor)][-2:]}
        return func(*args, **(kwargs or {}))


def test_no_product_is_made_in_fp32():
    """It would take the matrix units fifteen times as long."""
    given = case(256, 1000, hidden=64, teacher_hidden=(64,)).to(torch.bfloat16, "cuda")
    with Products() as products:
        ours(given, [Soft(2.0), Hard()])
    assert products.dtypes == {torch.bfloat16}


def test_one_graph_under_inductor_with_the_same_bits():
    given = case(64, 1000, hidden=64, teacher_hidden=(64,)).to(torch.bfloat16, "cuda")
    terms = [Soft(2.0), Hard(0.1)]
    compiled = torch.compile(head_losses, fullgraph=True)
    eager = ours(given, terms)
    found = gradients(
        lambda student: compiled(student, terms, given.coefficients, given.labels, given.teachers)[0], given.student
    )
    assert torch.equal(found[0], eager[0])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found[1], eager[1], strict=True))
