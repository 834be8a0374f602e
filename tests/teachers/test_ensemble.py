"""Several teachers that answer as one."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError

from megadistill.core.errors import UserError
from megadistill.core.types import Needs
from megadistill.objectives.soft_ce import SoftCE
from megadistill.teachers.ensemble import EnsembleSource, EnsembleTeacher
from megadistill.teachers.online import OnlineSource, OnlineTeacher
from megadistill.testing import tiny

NEEDS = Needs(teacher=True, teacher_hidden=frozenset({-1}))


def members():
    sizes = ({}, {"hidden_size": 32, "vocab_size": 64}, {"num_hidden_layers": 3})
    return [OnlineSource("m", tiny.language_model("bert", 2, seed=s, initializer_range=0.3, **c).double())
            for s, c in enumerate(sizes)]  # fmt: skip


def logits(signals, rows):
    return signals.head(lambda h, w, b: torch.nn.functional.linear(h, w, b), rows)


def test_its_logits_are_the_weighted_mean_at_every_temperature():
    """The geometric mean of the members' softened distributions, renormalised."""
    sources, weights = members(), [0.5, 0.2, 0.3]
    ensemble = EnsembleSource(sources, weights)
    batch = tiny.batch(3)
    ours = logits(ensemble.signals(batch, NEEDS), batch.attended)
    theirs = [logits(s.signals(batch, NEEDS), batch.attended)[:, : tiny.VOCABULARY] for s in sources]
    for temperature in (1.0, 4.0):
        product = sum(w * (z / temperature).log_softmax(-1) for w, z in zip(weights, theirs, strict=True))
        torch.testing.assert_close((ours / temperature).softmax(-1), product.softmax(-1), rtol=1e-10, atol=1e-12)
    assert ensemble.dims.vocabulary == tiny.VOCABULARY


def test_the_arithmetic_mean_is_that_of_the_distributions():
    """soft_ce learns from sum_k w_k softmax(z_k / T), not from the product."""
    sources, weights = members(), [0.5, 0.2, 0.3]
    batch = tiny.batch(3)
    model = tiny.language_model("bert", 1, seed=7, initializer_range=0.3).double()
    student = model.signals(batch, frozenset())
    log_q = (logits(student, batch.attended).detach() / 2).log_softmax(-1)
    theirs = [logits(s.signals(batch, NEEDS), batch.attended)[:, : tiny.VOCABULARY] / 2 for s in sources]
    p = sum(w * z.softmax(-1) for w, z in zip(weights, theirs, strict=True))
    loss = SoftCE(kind="soft_ce", temperature=2).build(model.dims, model.dims)
    found = {
        mean: loss(student, EnsembleSource(sources, weights, mean).signals(batch, NEEDS), batch).sum.item()
        for mean in ("arithmetic", "geometric")
    }
    assert found["arithmetic"] == pytest.approx(4 * float((p * (p.log() - log_q)).sum()), rel=1e-9)
    assert abs(found["geometric"] - found["arithmetic"]) > 0.1


@pytest.mark.parametrize(
    ("mean", "needs", "why"),
    [
        ("arithmetic", Needs(logits=True), "no logits have the arithmetic mean"),
        ("arithmetic", Needs(temperatures=frozenset({1.0, 2.0})), "at one temperature, not at 1, 2"),
        ("arithmetic", Needs(temperatures=frozenset({2.0})), ""),
        ("geometric", Needs(logits=True, temperatures=frozenset({1.0, 2.0})), ""),
        ("geometric", Needs(again=True), "different states"),
    ],
)
def test_what_a_mean_cannot_give_is_told(mean, needs, why):
    member = {"kind": "online", "path": "x"}
    told = EnsembleTeacher(kind="ensemble", members=[member, member], mean=mean).cannot(needs)
    assert why in told
    assert bool(why) == bool(told)


def test_rows_of_each_corpus_are_routed_to_the_members_that_know_it():
    sources, routes = members(), [[1.0, 0.0, 0.0], [0.0, 0.25, 0.75]]
    batch = tiny.batch(4)
    batch = replace(batch, corpora=torch.tensor([0, 1, 1, 0]))
    ours = logits(EnsembleSource(sources, [1 / 3] * 3, routes=routes).signals(batch, NEEDS), batch.attended)
    theirs = [logits(s.signals(batch, NEEDS), batch.attended)[:, : tiny.VOCABULARY] for s in sources]
    second = torch.isin(batch.attended // tiny.LENGTH, torch.tensor([1, 2])).unsqueeze(1)
    expected = torch.where(second, 0.25 * theirs[1] + 0.75 * theirs[2], theirs[0])
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"routes": {"a": [1, 0], "b": [1]}}, r"routes.b: .* for 2 members"),
        ({"routes": {"a": [1, 0]}, "weights": [1, 1]}, "instead of `weights`"),
        ({"routes": {"a": [1, 0]}, "mean": "arithmetic"}, "mean: geometric"),
    ],
)
def test_routes_that_lead_nowhere_are_refused(fields, message):
    member = {"kind": "online", "path": "x"}
    with pytest.raises(ValidationError, match=message):
        EnsembleTeacher(kind="ensemble", members=[member, member], **fields)


def test_routes_go_by_name():
    """Of corpora in their order, or of the one task, for which members that weigh nothing are not loaded."""
    members = [{"kind": "online", "path": path} for path in "abc"]
    routes = {"books": [1, 1, 0], "sst2": [0, 3, 1], "cola": [0, 0, 2]}
    teacher = EnsembleTeacher(kind="ensemble", members=members, routes=routes)
    assert list(teacher.stands_for(["sst2", "books"]).routes.values()) == [[0, 3, 1], [1, 1, 0]]
    sst2 = teacher.stands_for(["sst2"])
    assert ([member.path for member in sst2.members], sst2.weights, sst2.routes) == (["b", "c"], [3, 1], None)
    assert teacher.stands_for(["cola"]) == OnlineTeacher(kind="online", path="c")
    with pytest.raises(UserError, match="none for rte") as caught:
        teacher.stands_for(["rte"])
    assert "books, sst2, cola" in caught.value.why


def test_its_hidden_states_are_the_first_members():
    sources = members()
    batch = tiny.batch(3)
    ours = EnsembleSource(sources, [1 / 3] * 3).signals(batch, NEEDS).hidden[-1]
    assert torch.equal(ours, sources[0].signals(batch, NEEDS).hidden[-1])


def test_one_member_is_that_member():
    source, batch = members()[0], tiny.batch(3)
    student = tiny.language_model("bert", 1, seed=7).double().signals(batch, frozenset())
    loss = SoftCE(kind="soft_ce").build(tiny.language_model("bert", 1).dims, source.dims)
    alone, ensemble = (
        loss(student, s.signals(batch, NEEDS), batch).sum.item() for s in (source, EnsembleSource([source], [1.0]))
    )
    assert ensemble == pytest.approx(alone, rel=1e-9)


def test_its_identity_is_all_members_and_their_weights():
    sources = members()
    one, other = (EnsembleSource(sources, w).identity()["sha256"] for w in ([0.5, 0.2, 0.3], [0.2, 0.5, 0.3]))
    assert one != other
    assert EnsembleSource(sources, [0.5, 0.2, 0.3], "arithmetic").identity()["sha256"] != one
    with torch.no_grad():
        next(sources[2].model.parameters()).view(-1)[0] += 1
    assert EnsembleSource(sources, [0.5, 0.2, 0.3]).identity()["sha256"] != one


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0]])
def test_weights_that_weigh_nothing_are_refused(weights):
    member = {"kind": "online", "path": "x"}
    with pytest.raises(ValidationError, match="not all 0"):
        EnsembleTeacher(kind="ensemble", members=[member, member], weights=weights)


def test_vocabularies_of_different_tokenizers_are_refused():
    sources = [OnlineSource("m", tiny.language_model("bert", 1, vocab_size=size)) for size in (61, 2000)]
    with pytest.raises(UserError, match="61, 2,000 entries"):
        EnsembleSource(sources, [0.5, 0.5])


def test_its_states_cannot_be_exchanged():
    assert EnsembleSource(members(), [1 / 3] * 3).signals(tiny.batch(2), NEEDS).again is None
