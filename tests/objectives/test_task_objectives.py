"""Objectives of tasks equal their plain definitions, and the batch may be split at will."""

import pytest
import torch

from megadistill.core.errors import UserError
from megadistill.core.types import IGNORE, Batch, Dims, Signals
from megadistill.objectives.hard_ce import HardCE
from megadistill.objectives.kd_compat import KDCompat
from megadistill.objectives.logits_mse import LogitsMSE
from megadistill.objectives.soft_ce import SoftCE
from megadistill.objectives.span_ce import SpanCE, SpanSoftCE
from megadistill.objectives.value_mse import ValueMSE
from megadistill.run.config import check

F = torch.nn.functional
B, L = 6, 7


def model(outputs, seed):
    """Signals whose logits are a linear map of random float64 states, and those states."""
    draw = torch.Generator().manual_seed(seed)
    states = torch.randn(B, L, 5, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(outputs, 5, generator=draw, dtype=torch.float64)

    def head(fn, rows, layers=(-1,)):
        return fn(states.flatten(0, 1)[rows], weight, None)

    return Signals(head), F.linear(states, weight)


def batch(kind):
    mask = torch.arange(L) < torch.tensor([7, 3, 5, 2, 7, 4]).unsqueeze(1)
    labels = torch.full((B, L), IGNORE)
    more = {}
    if kind == "span":
        more["spans"] = torch.tensor([[0, 0], [1, 2], [2, 4], [0, 1], [3, 6], [1, 1]])
    else:
        labels[:, 0] = torch.arange(B) % 3 if kind == "label" else 0
    if kind == "value":
        more["values"] = torch.linspace(0, 5, B)
    return Batch(mask.long(), mask, mask.long(), labels, torch.arange(B), **more)


DIMS = Dims(1, 5, 3)


def test_a_class_is_the_label_of_the_first_position():
    given, (ours, logits), (theirs, goal) = batch("label"), model(3, 0), model(3, 1)
    labels = given.labels[:, 0]
    hard = HardCE(kind="hard_ce").build(DIMS, DIMS)(ours, theirs, given)
    assert hard.count == "targets"
    assert hard.sum.item() == pytest.approx(F.cross_entropy(logits[:, 0], labels, reduction="sum").item(), abs=1e-9)
    soft = SoftCE(kind="soft_ce", scope="targets", temperature=3).build(DIMS, DIMS)(ours, theirs, given)
    log_q, p = (logits[:, 0] / 3).log_softmax(-1), (goal[:, 0] / 3).softmax(-1)
    assert soft.sum.item() == pytest.approx(9 * F.kl_div(log_q, p, reduction="sum").item(), abs=1e-6)
    square = LogitsMSE(kind="logits_mse", scope="targets").build(DIMS, DIMS)(ours, theirs, given)
    assert square.sum.item() == pytest.approx((logits[:, 0] - goal[:, 0]).square().mean(-1).sum().item(), abs=1e-9)


@pytest.mark.filterwarnings("ignore:reduction")  # that `mean` divides by the classes is what is meant here
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_published_alphas_are_in_the_scale_of_their_code(temperature, classes):
    """Patient-KD's and TinyBERT's means are over classes too: of two of them, half of what soft_ce is. The third row
    has a question and no label."""
    whole, dims = batch("label"), Dims(1, 5, classes)
    labels = whole.labels.masked_fill(torch.arange(B).unsqueeze(1) == 2, IGNORE)
    given = Batch(whole.ids, whole.mask, whole.segments, labels, whole.rows, unanswered=torch.arange(B) == 2)
    (ours, logits), (theirs, goal) = model(classes, 0), model(classes, 1)

    def mean(objective):
        term = objective.build(dims, dims)(ours, theirs, given)
        assert term.count == "asked"
        return objective.weight * term.sum / B

    def same(found, wanted):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)

    fields = {"temperature": temperature, "scope": "targets"}
    log_q, p = (logits[:, 0] / temperature).log_softmax(-1), (goal[:, 0] / temperature).softmax(-1)
    pkd = mean(KDCompat(kind="kd_compat", original="pkd_mean", weight=0.7, **fields))
    same(pkd, 0.7 * temperature**2 * F.kl_div(log_q, p))
    same(pkd, mean(SoftCE(kind="soft_ce", weight=0.7 / classes, **fields)))
    tinybert = mean(KDCompat(kind="kd_compat", original="tinybert_mean", **fields))
    same(tinybert, (-p * log_q).mean())
    divided = mean(SoftCE(kind="soft_ce", weight=1 / classes / temperature**2, **fields))
    same(tinybert, divided + (-p * p.log()).mean())  # the teacher's entropy has no gradient


def test_a_number():
    given, (ours, logits) = batch("value"), model(1, 0)
    term = ValueMSE(kind="value_mse").build(Dims(1, 5, 1), None)(ours, None, given)
    assert term.count == "targets"
    wanted = F.mse_loss(logits[:, 0, 0], given.values.double(), reduction="sum")
    assert term.sum.item() == pytest.approx(wanted.item(), abs=1e-9)


def test_a_span_is_two_distributions_over_the_attended_positions():
    given, (ours, logits), (theirs, goal) = batch("span"), model(2, 0), model(2, 1)
    hard = SpanCE(kind="span_ce").build(DIMS, None)(ours, None, given)
    soft = SpanSoftCE(kind="span_soft_ce", temperature=2).build(DIMS, DIMS)(ours, theirs, given)
    assert hard.count == soft.count == "sequences"
    ce = kl = 0.0
    for row in range(B):
        width = int(given.mask[row].sum())
        for side in (0, 1):
            z, u = logits[row, :width, side], goal[row, :width, side]
            ce += -z.log_softmax(0)[given.spans[row, side]] / 2
            kl += 4 * F.kl_div((z / 2).log_softmax(0), (u / 2).softmax(0), reduction="sum") / 2
    assert hard.sum.item() == pytest.approx(ce.item(), abs=1e-9)
    assert soft.sum.item() == pytest.approx(kl.item(), abs=1e-9)


@pytest.mark.parametrize("kind", ["label", "value", "span"])
def test_a_split_batch_keeps_what_belongs_to_its_rows(kind):
    given = batch(kind)
    parts = given.split(4)
    assert [len(part.ids) for part in parts] == [4, 2]
    assert sum(part.counts() for part in parts).tolist() == given.counts().tolist()
    for name in ("values", "spans", "labels"):
        whole = getattr(given, name)
        if whole is not None:
            assert torch.equal(torch.cat([getattr(part, name) for part in parts]), whole)
        else:
            assert all(getattr(part, name) is None for part in parts)


TREE = {
    "name": "t",
    "task": {"kind": "glue", "name": "sst2", "folder": "none", "tokenizer": "none"},
    "teacher": {"kind": "online", "path": "none"},
    "student": {"kind": "hf"},
    "batch": {"global_size": 8, "micro_size": 8},
    "train": {"steps": 1},
}

CACHED = {"kind": "cached", "dir": "d", "of": TREE["teacher"], "keep": {"kind": "top_k", "entries": 8}}
TEXT = {"dir": "d", "corpora": [{"kind": "synthetic", "num_documents": 9}], "tokenizer": "t"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": [{"kind": "soft_ce"}]}, "set scope: targets"),
        ({"objectives": [{"kind": "span_ce"}]}, r"\(span_ce\): it cannot learn a task's classes; use hard_ce"),
        ({"objectives": [{"kind": "hard_ce"}], "task": {**TREE["task"], "name": "stsb"}}, "use value_mse"),
        ({"objectives": [{"kind": "hard_ce"}], "task": None}, "give `data` to pretrain or `task`"),
        ({"objectives": [{"kind": "hard_ce"}], "data": TEXT}, "not both"),
        (
            {"objectives": [{"kind": "hard_ce"}], "teacher": CACHED},
            r"teacher \(cached\): it does not teach a task's classes",
        ),
    ],
)
def test_objectives_that_do_not_suit_the_task_are_told(change, message):
    with pytest.raises(UserError, match=message):
        check({**TREE, **change}, "here")
