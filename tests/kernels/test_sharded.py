"""A vocabulary that is split over two processes gives the losses and gradients of one that is not."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megadistill.kernels.head_losses import Hard, Soft, reference_losses, sharded_head_losses
from megadistill.testing.heads import case, definition, distance, gradients, ours
from megadistill.testing.made import held
from megadistill.testing.processes import launch

WORKER = Path(__file__).with_name("sharded_worker.py")
spec = importlib.util.spec_from_file_location("sharded_worker", WORKER)
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of two ranks found, by case."""
    folder = tmp_path_factory.mktemp("sharded")
    processes = launch([str(WORKER), str(folder)], 2, cold=True)  # it imports little
    told = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(told)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.distributed
@pytest.mark.parametrize("name", worker.CASES)
def test_gradients_are_those_of_the_whole_vocabulary(ranks, name):
    size, _ = worker.CASES[name]
    given = case(worker.ROWS, size, len(worker.TERMS))
    value, (hidden, weight, bias) = definition(given, worker.TERMS)
    losses = reference_losses(given.student, worker.TERMS, given.labels, given.teachers)
    found = [rank[name] for rank in ranks]
    for rank in found:
        assert distance(rank["value"], value) <= 1e-6
        assert distance(rank["losses"], losses) <= 1e-6
        assert distance(rank["hidden"], hidden) <= 1e-5
    for part, exact in (("weight", weight), ("bias", bias)):
        whole = torch.cat([rank[part] for rank in found])
        assert distance(whole[:size], exact) <= 1e-5
        assert not whole[size:].any()


@pytest.mark.distributed
def test_a_block_of_rows_takes_one_exchange_of_a_few_numbers_a_row(ranks):
    blocks = -(-worker.ROWS // worker.BLOCK)
    for rank in ranks:
        for found in rank.values():
            assert len(found["gathered"]) == blocks
            assert all(shape[0] == 2 + 3 * len(worker.TERMS) for shape in found["gathered"])


@pytest.fixture
def alone(tmp_path):
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_wrong_argument_is_named(alone):
    given = case(5, 20)
    teacher = given.teachers[0]
    terms = [Soft(2.0), Hard()]

    def call(terms=terms, teacher=teacher, coefficients=given.coefficients, **options):
        sharded_head_losses(given.student, terms, coefficients, given.labels, teacher, **options)

    call()
    with pytest.raises(ValueError, match="forward_kl only"):
        call([Soft(1.0, "jsd"), Hard()])
    with pytest.raises(ValueError, match=r"vocabulary must be in 1 \.\.\. 20"):
        call(vocabulary=21)
    with pytest.raises(ValueError, match=r"teacher\.weight must have the student's 20 rows"):
        call(teacher=case(5, 21).teachers[0])
    with pytest.raises(ValueError, match=r"coefficients must be \[2, 5\]"):
        call(coefficients=given.coefficients[:1])
    with pytest.raises(ValueError, match="coefficients is on meta, the hidden states on cpu"):
        call(coefficients=given.coefficients.to("meta"))


def test_labels_out_of_range_are_named_on_request(alone, configure):
    """The vocabulary is that of all ranks, without its padding."""
    given = case(5, 20)
    given.coefficients[:] = 1
    given.labels[:] = torch.tensor([0, 3, 18, 7, 19])
    arguments = given.student, [Soft(2.0), Hard()], given.coefficients, given.labels, given.teachers[0]
    configure(check_labels=True)
    sharded_head_losses(*arguments)
    with pytest.raises(ValueError, match=r"labels must be in 0 \.\.\. 18, not 0 \.\.\. 19"):
        sharded_head_losses(*arguments, vocabulary=19)
    given.coefficients[1, 4] = 0  # nobody means that label
    sharded_head_losses(*arguments, vocabulary=19)


def test_autocast_computes_in_its_dtype(alone):
    terms = [Soft(2.0), Hard(0.1)]
    given = case(12, 40).to(torch.float32)

    def fn(student):
        return sharded_head_losses(student, terms, given.coefficients, given.labels, given.teachers[0])[0]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, whole = gradients(fn, given.student), ours(given, terms)
    assert distance(found[0], whole[0]) < 1e-6
    for mine, theirs in zip(found[1], whole[1], strict=True):
        assert mine.dtype == torch.float32
        assert distance(mine, theirs) < 1e-5
    exact = definition(given.to(torch.bfloat16).to(torch.float64), terms)
    assert distance(found[1][0], exact[1][0]) < 1e-2


def test_differentiated_twice_is_refused(alone):
    given = case(5, 20)
    hidden = given.student.hidden.requires_grad_()
    total, _ = sharded_head_losses(given.student, [Hard()], given.coefficients[:1], given.labels.clamp(min=0))
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        torch.autograd.grad(total, hidden, create_graph=True)


def test_what_it_holds_fits_the_workspace(alone, configure):
    configure(workspace_mib=1)
    given = case(70, 4096).to(torch.float32)

    def fn(student, *others):
        return [sharded_head_losses(student, [Soft(2.0), Hard(0.1)], *others)[1]]

    few = 8 * (40 * 70 + 8 * 4096)  # bytes of a few numbers a row and a few a column
    found = held(fn, [given.student, given.coefficients, given.labels, given.teachers[0]])
    assert 2**19 <= found <= 2**20 + few
