"""What every objective must do, each check proved on wrong implementations that it has to reject."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megadistill.core.types import Needs, Term
from megadistill.objectives.attention_mse import AttentionMSE
from megadistill.objectives.attention_relation import AttentionRelation
from megadistill.objectives.base import needs_of
from megadistill.objectives.cosine import Cosine
from megadistill.objectives.counterfactual import Counterfactual
from megadistill.objectives.embedding_mse import EmbeddingMSE
from megadistill.objectives.hard_ce import HardCE
from megadistill.objectives.hidden_mse import HiddenMSE
from megadistill.objectives.kd_compat import KDCompat
from megadistill.objectives.logits_mse import LogitsMSE
from megadistill.objectives.mutual import Mutual, _MutualLoss
from megadistill.objectives.pkd import PKD
from megadistill.objectives.self_layers import SelfLayers
from megadistill.objectives.soft_ce import SoftCE
from megadistill.objectives.teacher_label import TeacherLabel
from megadistill.testing import states

OBJECTIVES = {
    "soft_ce": SoftCE(kind="soft_ce", temperature=3),
    "soft_ce on targets": SoftCE(kind="soft_ce", scope="targets"),
    "soft_ce reversed": SoftCE(kind="soft_ce", divergence="reverse_kl"),
    "soft_ce between both": SoftCE(kind="soft_ce", divergence="jsd", beta=0.3),
    "kd_compat": KDCompat(kind="kd_compat", original="hf_distil", temperature=2),
    "kd_compat with entropy": KDCompat(kind="kd_compat", original="textbrewer", temperature=2),
    "kd_compat on targets": KDCompat(kind="kd_compat", original="neural_compressor_ce", temperature=2, scope="targets"),
    "hard_ce": HardCE(kind="hard_ce"),
    "hard_ce smoothed": HardCE(kind="hard_ce", label_smoothing=0.1),
    "teacher_label": TeacherLabel(kind="teacher_label"),
    "logits_mse": LogitsMSE(kind="logits_mse"),
    "logits_mse centred": LogitsMSE(kind="logits_mse", center=True, reduction="sum", scope="targets", temperature=3),
    "cosine": Cosine(kind="cosine"),
    "cosine of all layers": Cosine(kind="cosine", layers="uniform", layer_weights=[1, 0.5]),
    "hidden_mse": HiddenMSE(kind="hidden_mse"),
    "hidden_mse projected": HiddenMSE(kind="hidden_mse", layers={0: 0, 1: 2}, projection="per_layer"),
    "embedding_mse": EmbeddingMSE(kind="embedding_mse", projection="shared"),
    "pkd": PKD(kind="pkd"),
    "pkd of all tokens": PKD(kind="pkd", positions="tokens", layers={1: 4}, reduction="sum"),
    "attention_mse": AttentionMSE(kind="attention_mse"),
    "attention_mse gram": AttentionMSE(kind="attention_mse", form="gram"),
    "minilm": AttentionRelation(kind="attention_relation"),
    "minilm v2": AttentionRelation(kind="attention_relation", relations=["qq", "kk", "vv"], heads=3),
    "self_layers": SelfLayers(kind="self_layers", layers=[1], temperature=2),
    "mutual": Mutual.model_validate({"kind": "mutual", "member": {"kind": "hf", "architecture": "bert"}}),
    "counterfactual": Counterfactual(kind="counterfactual", proportion=0.7, cosine=0.5),
}
NEVER_ZERO = ("hard_ce", "hard_ce smoothed", "teacher_label", "embedding_mse")
WITH_ENTROPY = ("kd_compat with entropy", "kd_compat on targets", "mutual")
"""Of an equal student they have a value, but no gradient: the teacher's entropy, or the member's own cross-entropy."""
WHEN_EQUAL = [n for n in OBJECTIVES if n not in NEVER_ZERO and "projected" not in n]
ADDITIVE = [n for n in OBJECTIVES if n != "counterfactual"]  # whose rows meet within a micro-batch, as it remarks
LEARNING = {n: states.States.leaves for n in OBJECTIVES if n != "mutual"}
"""Of which leaves finite differences are taken. Where what teaches learns too and is held fixed (`mutual`, and the head
of `self_layers`) they are no gradient: test_mutual and test_self_layers compare with plain ones."""
LEARNING["self_layers"] = lambda student: [student.hidden[1]]


def built(name):
    if name == "mutual":
        return as_a_member
    torch.manual_seed(0)
    loss = OBJECTIVES[name].build(states.states(0).dims, states.states(1, layers=4).dims)
    return loss.double() if isinstance(loss, torch.nn.Module) else loss


def as_a_member(student, teacher, batch):
    """Mutual learning with the second model of a check."""
    return _MutualLoss(SimpleNamespace(signals=lambda *_: teacher), 2.0)(student, None, batch)


def term(loss, student, teacher, batch):
    torch.manual_seed(0)  # of the spans that are exchanged
    return loss(student.signals(), teacher.signals(), batch)


# ------------------------------------------------------------------ the checks


def check_additive(loss, seed, cut):
    """A sum over rows is the sum of the sums over its parts, so any split of a batch has one gradient."""
    student, teacher, batch = states.states(seed), states.states(seed + 1, layers=4), states.batch(seed)
    whole = term(loss, student, teacher, batch).sum
    parts = [
        term(loss, student.rows(part), teacher.rows(part), states.rows_of(batch, part)).sum
        for part in (slice(0, cut), slice(cut, 4))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-9, atol=1e-9)


def check_padding(loss):
    """What stands at padding changes nothing, and an empty row adds nothing."""
    student, teacher, batch = states.states(1), states.states(2, layers=4), states.batch(3)
    before = term(loss, student, teacher, batch).sum
    for model in (student, teacher):
        for tensor in model.hidden:
            tensor[~batch.mask] = 1e3
        for tensor in (*model.query, *model.key, *model.value):
            tensor.transpose(1, 2)[~batch.mask] = 1e3
    torch.testing.assert_close(term(loss, student, teacher, batch).sum, before, rtol=1e-9, atol=1e-9)


def check_nothing(loss):
    """Nothing to learn from is zero with a graph: every parameter is touched on every rank, without NaN."""
    student, teacher = states.states(1, grad=True), states.states(2, layers=4)
    total = term(loss, student, teacher, states.given(torch.zeros(4, 5, dtype=torch.bool))).sum
    assert total.item() == 0
    gradients = torch.autograd.grad(total, student.leaves(), allow_unused=True)
    touched = [g for g in gradients if g is not None]
    assert touched
    assert all(torch.equal(g, torch.zeros_like(g)) for g in touched)


def check_gradient(loss, learning=states.States.leaves):
    """The gradient is that of the reported loss (finite differences in float64)."""
    student, teacher, batch = states.states(1, grad=True), states.states(2, layers=4), states.batch(3)
    assert torch.autograd.gradcheck(
        lambda *_: term(loss, student, teacher, batch).sum, learning(student), fast_mode=True
    )


def check_equal(loss, entropy=False):
    """A student that is its teacher, and whose layers agree, has no loss, no gradient, and no NaN."""
    student = states.states(1, grad=True)
    student.hidden[1].data.copy_(student.hidden[2])
    teacher = replace(student, **{
        name: [t.detach().clone() for t in getattr(student, name)] for name in ("hidden", "query", "key", "value")
    }, weight=student.weight.detach(), bias=student.bias.detach())  # fmt: skip
    total = term(loss, student, teacher, states.batch(3)).sum
    gradients = [g for g in torch.autograd.grad(total, student.leaves(), allow_unused=True) if g is not None]
    assert entropy or abs(total.item()) < 1e-12
    assert max(float(g.abs().max()) for g in gradients) < 1e-9


# ------------------------------------------------------------------ the objectives


@pytest.mark.parametrize("name", ADDITIVE)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 2**31), cut=st.integers(1, 3))
def test_sums_add_up_over_any_split(name, seed, cut):
    check_additive(built(name), seed, cut)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_padding_changes_nothing(name):
    check_padding(built(name))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_nothing_to_learn_from_is_zero_with_a_graph(name):
    check_nothing(built(name))


@pytest.mark.parametrize("name", LEARNING)
def test_the_gradient_is_that_of_the_loss(name):
    check_gradient(built(name), LEARNING[name])


@pytest.mark.parametrize("name", WHEN_EQUAL)
def test_an_equal_student_has_nothing_to_learn(name):
    dims = states.states(1).dims
    objective = OBJECTIVES[name]
    if name == "pkd of all tokens":
        objective = objective.model_copy(update={"layers": {1: 1}})
    loss = as_a_member if name == "mutual" else objective.build(dims, dims)
    check_equal(loss, entropy=name in WITH_ENTROPY)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_all_that_is_read_is_asked_for(name):
    """With nothing but what it needs in the signals it still computes."""
    loss, batch = built(name), states.batch(3)
    needs = needs_of(OBJECTIVES[name], loss)
    ours, theirs = states.states(1).signals(), states.states(2, layers=4).signals()

    def only(signals, hidden, attention):
        kept = {
            "hidden": {k: signals.hidden[k] for k in hidden},
            "attention": {k: signals.attention[k] for k in attention},
        }
        return replace(signals, **kept, again=signals.again if needs.again else None)

    asked = (
        only(ours, needs.student_hidden, needs.student_attention),
        only(theirs, needs.teacher_hidden, needs.teacher_attention),
    )
    sums = []
    for signals in (asked, (ours, theirs)):
        torch.manual_seed(0)
        sums.append(loss(*signals, batch).sum)
    assert torch.equal(*sums)


# ------------------------------------------------------------------ wrong implementations


def mse(student, teacher):
    return (student.hidden[-1] - teacher.hidden[-1]).square().mean(-1)


def mean_of_the_micro_batch(student, teacher, batch):
    return Term((mse(student, teacher) * batch.mask).sum() / batch.mask.sum(), "tokens")


def padding_counted(student, teacher, batch):
    return Term(mse(student, teacher).sum(), "tokens")


def padding_multiplied_away_after_a_softmax_over_it(student, teacher, batch):
    log_q, log_p = ((s.attention[-1].query @ s.attention[-1].key.transpose(-1, -2)).log_softmax(-1)
                    for s in (student, teacher))  # fmt: skip
    kl = (log_p.exp() * (log_p - log_q)).sum(-1).mean(1)
    return Term((kl * batch.mask).sum(), "tokens")


def skipped_when_empty(student, teacher, batch):
    if not batch.mask.any():
        return Term(torch.zeros((), dtype=torch.float64, requires_grad=True), "tokens")
    return Term((mse(student, teacher) * batch.mask).sum(), "tokens")


def divided_by_an_empty_mask(student, teacher, batch):
    per_row = (mse(student, teacher) * batch.mask).sum(1) / batch.mask.sum(1)
    return Term(per_row.sum(), "sequences")


def gradient_of_something_else(student, teacher, batch):
    weight = mse(student, teacher).detach()
    return Term((weight * mse(student, teacher) * batch.mask).sum(), "tokens")


def norm_without_a_guard(student, teacher, batch):
    distance = (student.hidden[-1] - teacher.hidden[-1]).square().sum(-1).sqrt()
    return Term((distance * batch.mask).sum(), "tokens")


def exchanged_with_padding(student, teacher, batch):
    exchanged = student.again({1: student.hidden[1].roll(1, 0)}, batch.mask)
    return Term((mse(exchanged, teacher) * batch.mask).sum(), "tokens")


def rows_normalised_by_the_batch(student, teacher, batch):
    difference = student.hidden[-1] - teacher.hidden[-1]
    return Term(((difference / difference.detach().std()).square().mean(-1) * batch.mask).sum(), "tokens")


@pytest.mark.parametrize(
    ("wrong", "check"),
    [
        (mean_of_the_micro_batch, lambda loss: check_additive(loss, 7, 2)),
        (rows_normalised_by_the_batch, lambda loss: check_additive(loss, 7, 2)),
        (padding_counted, check_padding),
        (padding_multiplied_away_after_a_softmax_over_it, check_padding),
        (exchanged_with_padding, check_padding),
        (skipped_when_empty, check_nothing),
        (divided_by_an_empty_mask, check_nothing),
        (gradient_of_something_else, check_gradient),
        (norm_without_a_guard, check_equal),
    ],
)
def test_the_checks_reject(wrong, check):
    with pytest.raises((AssertionError, RuntimeError)):
        check(wrong)


def test_needs_add_up():
    a = Needs(frozenset({1}), teacher=True)
    b = Needs(frozenset({-1}), student_attention=frozenset({2}), again=True)
    assert a | b == Needs(frozenset({1, -1}), frozenset(), True, frozenset({2}), frozenset(), True)
