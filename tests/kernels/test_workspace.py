"""What a head-loss call holds beside its arguments and results is counted before, and fits the workspace."""

from itertools import product

import pytest
import torch

from megadistill.kernels import native
from megadistill.kernels.head_losses import Hard, Soft, TopK, blocks, workspace_bytes
from megadistill.kernels.head_losses import op as implementation
from megadistill.kernels.head_losses.rows_torch import RowFunction
from megadistill.kernels.head_losses.terms import encode, one_of_each
from megadistill.testing.heads import case
from megadistill.testing.made import held

ROWS, VOCABULARY, MIB = 70, 4096, 1
FEW = 8 * (20 * ROWS + 8 * VOCABULARY)  # bytes of a few numbers a row and a few a column
TERMS = {
    "hard": [Hard(0.1)],
    "soft and hard": [Soft(2.0), Hard()],
    "reverse": [Hard(), Soft(2.0, "reverse_kl")],
    "jsd": [Hard(0.1), Soft(2.0, "jsd"), Soft(2.0)],
}
DTYPES = [torch.float32, torch.bfloat16, torch.float64]


def cases():
    for rows, terms, teachers, dtype in product(
        ["eager", "triton", "native"], TERMS, ["none", "one", "arithmetic", "geometric", "top_k"], DTYPES
    ):
        if dtype != torch.float32 and (terms, teachers) != ("soft and hard", "one"):
            continue
        fits = (terms == "hard") == (teachers == "none") and (teachers != "top_k" or terms == "soft and hard")
        compiled = teachers != "top_k" and dtype != torch.float64
        if rows == "native":
            compiled = compiled and one_of_each(encode(TERMS[terms])) is not None
        if rows == "triton":  # which takes the interpreter a second
            compiled = dtype == torch.float32 and teachers == "one" and terms != "reverse"
        if fits and (compiled or rows == "eager"):
            yield rows, terms, teachers, dtype


@pytest.mark.parametrize(("rows", "terms", "teachers", "dtype"), list(cases()))
def test_a_call_holds_what_was_counted_and_no_more_than_its_workspace(configure, rows, terms, teachers, dtype):
    if rows == "native" and native.library()[0] is None:
        pytest.skip(native.library()[1])
    if rows == "triton" and torch.cuda.is_available():
        pytest.skip("Triton is not interpreted where there is a GPU, on which test_gpu.py measures")
    configure(rows=rows, workspace_mib=MIB)
    word = encode(TERMS[terms])
    several = (24, 24) if teachers in ("arithmetic", "geometric") else (24,)
    given = case(ROWS, VOCABULARY, len(TERMS[terms]), teacher_hidden=several).to(dtype)
    top_k = TopK(torch.arange(4).expand(ROWS, 4), torch.full((ROWS, 4), -2.0)) if teachers == "top_k" else None
    others = given.teachers if teachers not in ("none", "top_k") else []
    flat = implementation._flat(others, None, teachers, top_k)
    arguments = (*given.student, given.labels, given.coefficients, *flat, word, [True] * 3, VOCABULARY)
    heads = *given.student[:2], [t.hidden for t in others], [t.weight for t in others]
    counted = workspace_bytes(*heads, word, teachers == "arithmetic", top_k is not None, VOCABULARY, False)
    copies = 0
    if dtype == torch.bfloat16:
        copies = 4 * sum(t.numel() for head in (given.student, *others) for t in head[:2])
    assert counted - copies <= MIB * 2**20
    found = held(implementation._forward._init_fn, arguments)
    assert 0.5 * counted <= found <= counted + FEW


def test_what_a_row_function_makes_of_its_rows_leaves_room_for_a_block(configure):
    """Half of a workspace is its at most; by default as much as the blocks have, on top."""
    function = RowFunction(print, values=8)

    def plan(rows):
        return blocks.plan(rows, torch.float32, 30522, 4096, False, teacher=True, mixed=False)

    configure(workspace_mib=2)
    assert (plan(function).inner_rows, plan(function).at_once) == (4, 1)
    configure(workspace_mib=64)
    assert plan(function).bytes <= 64 * 2**20
    assert plan(function).at_once == 32 * 2**20 // (30522 * 32)
    assert plan(function._replace(most=4)).at_once == 4
    assert plan(function._replace(most=4)).inner_rows > plan(function).inner_rows
    whole = plan(function._replace(whole=True))
    assert whole.inner_rows == 64 * 2**20 // (30522 * 40)
    configure(workspace_mib=None)
    assert plan(function).inner_rows == plan(RowFunction(print)).inner_rows == 128


def test_a_gradient_that_cannot_take_the_logits_place_is_counted():
    """On a GPU in fp32, when a kernel goes over the logits twice."""
    one, two = (
        blocks.plan(blocks.row_function("triton", word), torch.float32, 50257, 4096, True, teacher=True, mixed=False)
        for word in ("forward_kl:2.0:0.5,hard:0.0", "forward_kl:2.0:0.5,jsd:2.0:0.5")
    )
    assert one.bytes == one.leading * one.inner_rows * 8
    assert two.bytes == two.leading * (two.inner_rows * 8 + two.outer_rows * 4)
    assert two.outer_rows == 4 * two.inner_rows
