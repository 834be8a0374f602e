"""Interchange interventions on real models: the exchange, the loss after it, its gradient, and what it costs."""

from dataclasses import replace

import pytest
import torch

from megadistill.core.errors import UserError
from megadistill.core.types import Dims, Needs
from megadistill.objectives.base import needs_of
from megadistill.objectives.counterfactual import Counterfactual, spans
from megadistill.teachers.online import OnlineSource
from megadistill.testing import states, tiny

CF = {"kind": "counterfactual"}


def pair(name):
    return tiny.language_model(name, 2, seed=1).double(), OnlineSource(
        "t", tiny.language_model(name, 4, seed=2).double()
    )


def ask(objective, student, teacher, batch):
    loss = objective.build(student.dims, teacher.dims)
    needs = needs_of(objective, loss)
    return loss(student.signals(batch, needs.student_hidden), teacher.signals(batch, needs), batch)


def by_hand(model, layer, batch, where):
    """The counterfactual last states: layer by layer, with the exchange written out."""
    kept = {}

    def keep(module, inputs, output):
        kept["source"] = (output[0] if isinstance(output, tuple) else output).detach()

    def exchange(module, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.clone()
        for b, i in where.nonzero().tolist():
            hidden[b, i] = kept["source"][b - 1, i]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    stack = model.hf.bert.encoder.layer if hasattr(model.hf, "bert") else model.hf.transformer.h
    for hook in (keep, exchange):
        handle = stack[layer - 1].register_forward_hook(hook)
        result = model.signals(batch, frozenset({-1}))
        handle.remove()
    return result


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_it_is_the_divergence_after_the_same_exchange_in_both(name):
    student, teacher = pair(name)
    batch = tiny.batch(5, seed=3)
    torch.manual_seed(7)
    where = spans(batch.mask, 0.3)
    torch.manual_seed(7)
    term = ask(Counterfactual(**CF, temperature=2, cosine=0.5), student, teacher, batch)
    ours, goal = by_hand(student, 1, batch, where), by_hand(teacher.model, 2, batch, where)

    def logits(signals):
        return signals.head(lambda h, w, b: torch.nn.functional.linear(h, w, b), batch.attended) / 2

    log_q, log_p = logits(ours).log_softmax(-1), logits(goal).log_softmax(-1)
    kl = 4 * (log_p.exp() * (log_p - log_q)).sum()
    cosine = torch.nn.functional.cosine_similarity(ours.hidden[-1], goal.hidden[-1], dim=-1)[batch.mask]
    assert term.count == "tokens"
    torch.testing.assert_close(term.sum, kl + 0.5 * (1 - cosine).sum(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_interchange_accuracy_is_the_share_of_targets_where_both_rank_one_token_first(name):
    student, teacher = pair(name)
    batch = tiny.batch(5, seed=3)
    torch.manual_seed(7)
    where = spans(batch.mask, 0.3)
    torch.manual_seed(7)
    term = ask(Counterfactual(**CF), student, teacher, batch)
    ours, goal = by_hand(student, 1, batch, where), by_hand(teacher.model, 2, batch, where)
    first = [
        s.head(lambda h, w, b: torch.nn.functional.linear(h, w, b), batch.targets).argmax(-1) for s in (ours, goal)
    ]
    agreed = int((first[0] == first[1]).sum())
    assert term.watch["interchange_accuracy"]().tolist() == [agreed, len(batch.targets)]


def test_the_student_learns_through_both_rows_and_the_teacher_does_not():
    student, teacher = pair("bert")
    batch = tiny.batch(4, seed=3)
    ask(Counterfactual(**CF), student, teacher, batch).sum.backward()
    assert all(bool(p.grad.any()) for n, p in student.named_parameters() if "layer.0.attention.self.value" in n)
    assert all(p.grad is None for p in teacher.model.parameters())


def test_a_student_that_is_its_teacher_answers_every_exchange_alike():
    student = tiny.language_model("bert", 4, seed=2).double()
    teacher = OnlineSource("t", tiny.language_model("bert", 4, seed=2).double())
    term = ask(Counterfactual(**CF, layers={2: 2}, cosine=1.0), student, teacher, tiny.batch(4, seed=3))
    assert abs(term.sum.item()) < 1e-9


def test_swapped_layers_are_noticed():
    """The same exchange at another place of the student is another question."""
    student, teacher = (tiny.language_model("bert", 4, seed=2, initializer_range=0.3).double() for _ in range(2))
    source = OnlineSource("t", teacher)
    apart, together = (
        ask(Counterfactual(**CF, layers=layers), student, source, tiny.batch(4, seed=3)).sum.item()
        for layers in ({1: 2}, {2: 2})
    )
    assert apart > 0.01
    assert abs(together) < 1e-9


def test_it_runs_again_only_what_lies_above_the_exchange():
    student, teacher = pair("bert")  # of 2 and 4 layers; 1 and 2 are exchanged
    calls = {"student": 0, "teacher": 0}
    for name, model in (("student", student), ("teacher", teacher.model)):

        def count(*_, name=name):
            calls[name] += 1

        for layer in model.hf.bert.encoder.layer:
            layer.attention.register_forward_hook(count)
    ask(Counterfactual(**CF), student, teacher, tiny.batch(4))
    assert calls == {"student": 2 + 1, "teacher": 4 + 2}


@pytest.mark.parametrize("proportion", [0.1, 0.3, 1.0])
def test_spans_are_runs_of_the_asked_share_inside_both_rows(proportion):
    mask = tiny.batch(50, seed=1).mask
    both = mask & mask.roll(1, 0)
    where = spans(mask, proportion)
    assert not (where & ~both).any()
    for row, seen in zip(where, both, strict=True):
        places = row.nonzero().squeeze(1)
        assert len(places) == -(-int(seen.sum()) * proportion // 1)
        assert len(places) == 0 or int(places[-1] - places[0]) == len(places) - 1
    assert len({int(row.nonzero()[0]) for row in where if row.any()}) > 1 or proportion == 1


def test_empty_rows_exchange_nothing():
    assert not spans(torch.zeros(3, 5, dtype=torch.bool), 0.3).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": {6: 6}}, "from 1 to the last but one"),
        ({"layers": {0: 0}}, "from 1 to the last but one"),
        ({"layers": {9: 6}}, "no student layer 9"),
        ({"cosine": 1.0}, "the teacher has 768, the student 312"),
    ],
)
def test_what_cannot_be_exchanged_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        Counterfactual(**CF, **fields).build(Dims(6, 312, 100), Dims(12, 768, 100))


def test_signals_that_cannot_be_asked_again_are_refused_with_what_to_do():
    student, teacher = states.states(1), states.states(2, layers=4)
    loss = Counterfactual(**CF).build(student.dims, teacher.dims)
    with pytest.raises(UserError, match="no one model in the process"):
        loss(student.signals(), replace(teacher.signals(), again=None), states.batch(3))


def test_it_says_that_it_asks_again():
    assert Counterfactual(**CF).needs() == Needs(teacher=True, again=True)
