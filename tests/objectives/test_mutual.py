"""Two members in one step: what each learns from, and that both do."""

from dataclasses import replace

import pytest
import torch

from megadistill.core.errors import UserError
from megadistill.core.types import IGNORE
from megadistill.objectives.hard_ce import HardCE
from megadistill.objectives.mutual import Mutual
from megadistill.objectives.step import DistillStep
from megadistill.testing import tiny

SIZES = {
    "bert": {
        "num_hidden_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": tiny.LENGTH,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    "gpt2": {
        "n_layer": 1,
        "n_embd": 8,
        "n_head": 2,
        "n_positions": tiny.LENGTH,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
}


def mutual(architecture="bert", **fields):
    member = {"kind": "hf", "architecture": architecture, "config": {**SIZES[architecture], **fields}}
    return Mutual.model_validate({"kind": "mutual", "member": member, "temperature": 2})


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_each_learns_from_the_other_and_from_the_labels(architecture):
    student = tiny.language_model(architecture, 2, seed=1, initializer_range=0.3).double()
    loss = mutual(architecture, initializer_range=0.3).build(student.dims, None).double()
    batch = tiny.batch(4, seed=3)
    term = loss(student.signals(batch, frozenset()), None, batch)

    def logits(model):
        return model.signals(batch, frozenset()).head(lambda *head: torch.nn.functional.linear(*head), batch.targets)

    z, v = logits(student), logits(loss.member)
    labels = batch.labels.flatten()[batch.targets]

    def kl(teacher, learner):
        log_p, log_q = (teacher.detach() / 2).log_softmax(-1), (learner / 2).log_softmax(-1)
        return 4 * (log_p.exp() * (log_p - log_q)).sum()

    expected = kl(v, z) + kl(z, v) + torch.nn.functional.cross_entropy(v, labels, reduction="sum")
    assert term.count == "targets"
    torch.testing.assert_close(term.sum, expected, rtol=1e-9, atol=1e-9)
    parameters = [*student.parameters(), *loss.member.parameters()]
    found, wanted = (torch.autograd.grad(total, parameters, allow_unused=True) for total in (term.sum, expected))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-10)


def test_both_members_learn_in_one_step_and_the_student_alone_is_the_students():
    student = tiny.language_model("bert", 2, seed=1)
    objectives = [HardCE(kind="hard_ce"), mutual()]
    step = DistillStep(student, objectives, [o.build(student.dims, None) for o in objectives])
    members = {"student": step.student, "member": step.learned["mutual"].member}
    assert not {id(p) for p in members["student"].parameters()} & {id(p) for p in members["member"].parameters()}
    batch = tiny.batch(8)

    def losses():
        with torch.no_grad():
            return {
                name: model.signals(batch, frozenset())
                .head(lambda *head: torch.nn.functional.linear(*head), batch.targets)
                .log_softmax(-1)
                .gather(1, batch.labels.flatten()[batch.targets].unsqueeze(1))
                .mean()
                .item()
                for name, model in members.items()
            }

    before = losses()
    optimizer = torch.optim.AdamW(step.parameters(), lr=3e-3)
    for _ in range(15):
        loss, _ = step(batch, None, (1 / batch.counts()).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = losses()
    assert all(after[name] > before[name] + 0.2 for name in members)


def test_splits_add_up_and_without_labels_both_are_touched_and_learn_nothing():
    student = tiny.language_model("bert", 2, seed=1).double()
    loss = mutual().build(student.dims, None).double()
    parameters = [*student.parameters(), *loss.member.parameters()]

    def ask(batch):
        total = loss(student.signals(batch, frozenset()), None, batch).sum
        return total, torch.autograd.grad(total, parameters, allow_unused=True)

    batch = tiny.batch(4, seed=3)
    whole, reached = ask(batch)
    torch.testing.assert_close(sum(ask(part)[0] for part in batch.split(1)), whole, rtol=1e-9, atol=1e-9)
    nothing, gradients = ask(replace(batch, labels=torch.full_like(batch.labels, IGNORE)))
    assert nothing.item() == 0
    assert [g is None for g in gradients] == [g is None for g in reached]
    assert not any(bool(g.any()) for g in gradients if g is not None)


def test_a_member_of_another_vocabulary_is_refused():
    with pytest.raises(UserError, match="member: it has a vocabulary of 50 entries"):
        mutual(vocab_size=50).build(tiny.language_model("bert", 1).dims, None)
