"""Losses by frequency and calibration are those of a plain computation, target by target, over whole logits."""

from __future__ import annotations

import math

import pytest
import torch

from megadistill.core.types import IGNORE, Batch
from megadistill.kernels.chunks import chunks
from megadistill.models import profile
from megadistill.models.profile import GROUPS, SUMS, compare, described, sums, tenths
from megadistill.models.scoring import row_scores, score_rows
from megadistill.testing import tiny

COUNTS = torch.tensor([0, 0, 7, 3, 0, *(1000 // (k + 1) for k in range(tiny.VOCABULARY - 5))])


def total(student, teacher, batches, tenth):
    result = torch.zeros(SUMS, GROUPS, dtype=torch.float64)
    for batch in batches:
        answer = None if teacher is None else teacher.signals(batch, frozenset())
        ours, theirs, kl = compare(student.signals(batch, frozenset()), answer, batch)
        result += sums(ours, theirs, kl, batch.labels.flatten()[batch.targets], tenth)
    return result


def plain(student, teacher, batch):
    """(label, student's probabilities, teacher's) of each target, in double precision."""
    found = []
    for row, place in (batch.labels != IGNORE).nonzero().tolist():
        p, q = (
            model.hf(input_ids=batch.ids, attention_mask=batch.mask.long()).logits[row, place].double().softmax(-1)
            for model in (teacher, student)
        )
        found.append((int(batch.labels[row, place]), q.tolist(), p.tolist()))
    return found


def mean(values):
    return sum(values) / len(values) if values else None


@pytest.mark.parametrize("pair", [("bert", "distilbert"), ("gpt2", "gpt2")])
@torch.no_grad()
def test_against_a_plain_computation(pair, monkeypatch):
    teacher, student = tiny.language_model(pair[0], seed=1), tiny.language_model(pair[1], layers=1, seed=2)
    for model in (teacher, student):  # sharper than they start, so that confidences differ
        model.hf.get_output_embeddings().weight.mul_(40 if pair[0] == "bert" else 12)
        model.eval()
    monkeypatch.setattr(
        profile, "chunks", lambda n, v, num_buffers: chunks(n, v, num_buffers, workspace_mib=0)
    )  # of 16
    batch = tiny.batch(12)
    targets, tenth = plain(student, teacher, batch), tenths(COUNTS)
    found = described(total(student, teacher, [batch], tenth), tenth, with_teacher=True)
    assert len(targets) > 20

    kl = [sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) for _, q, p in targets]
    assert found["kl"] == pytest.approx(mean(kl), rel=1e-4)
    for group in range(GROUPS):
        here = [n for n, (label, _, _) in enumerate(targets) if int(tenth[label]) == group]
        frequency = {name: values[group] for name, values in found["by_frequency"].items()}
        assert frequency["targets"] == len(here)
        assert frequency["kl"] == pytest.approx(mean([kl[n] for n in here]), abs=1e-4)
        losses = [[-math.log(targets[n][which][targets[n][0]]) for n in here] for which in (1, 2)]
        assert frequency["loss"] == pytest.approx(mean(losses[0]), abs=1e-4)
        assert frequency["teacher_loss"] == pytest.approx(mean(losses[1]), abs=1e-4)
    for which, prefix in ((1, ""), (2, "teacher_")):
        error, used = 0.0, 0
        for group in range(GROUPS):
            sure = [(max(t[which]), t[which].index(max(t[which])) == t[0]) for t in targets]
            inside = [(c, hit) for c, hit in sure if group / GROUPS < c <= (group + 1) / GROUPS]
            here = {name: values[group] for name, values in found[f"{prefix}calibration"].items()}
            assert here["targets"] == len(inside)
            assert here["confidence"] == pytest.approx(mean([c for c, _ in inside]), abs=1e-4)
            assert here["accuracy"] == pytest.approx(mean([hit for _, hit in inside]), abs=1e-4)
            if inside:
                used += 1
                error += len(inside) / len(targets) * abs(mean([c for c, _ in inside]) - mean([h for _, h in inside]))
        assert found[f"{prefix}calibration_error"] == pytest.approx(error, abs=1e-5)
        assert used > 2


def test_sums_add_up_over_batches_and_need_no_teacher():
    teacher, student = tiny.language_model(seed=1).eval(), tiny.language_model(layers=1, seed=2).eval()
    batch, tenth = tiny.batch(9), tenths(COUNTS)
    whole = total(student, teacher, [batch], tenth)
    torch.testing.assert_close(total(student, teacher, batch.split(2), tenth), whole, rtol=1e-5, atol=1e-5)
    alone = total(student, None, [batch], tenth)
    kept = [0, 1, 4, 5, 6]
    torch.testing.assert_close(alone[kept], whole[kept], rtol=1e-5, atol=1e-5)
    assert not alone[[2, 3, 7, 8, 9]].any()
    told = described(alone, tenth, with_teacher=False)
    assert set(told) == {"calibration", "calibration_error", "by_frequency"}
    assert set(told["by_frequency"]) == {"entries", "targets", "loss"}


def test_the_rows_scores_are_those_of_training():
    teacher, student = tiny.language_model(seed=1).eval(), tiny.language_model(layers=1, seed=2).eval()
    batch = tiny.batch(9)
    signals = student.signals(batch, frozenset()), teacher.signals(batch, frozenset())
    ours, theirs, _ = compare(*signals, batch)
    expected = score_rows(*signals, batch)
    torch.testing.assert_close(row_scores(batch, ours.nll, ours.best, theirs.best).totals(), expected.totals())


@pytest.mark.parametrize("sizes", [(70, 61), (61, 70)])
def test_entries_that_one_model_does_not_have_are_left_out_of_the_divergence(sizes):
    teacher, student = (tiny.language_model("gpt2", seed=n, vocab_size=v).eval() for n, v in enumerate(sizes))
    batch = tiny.batch(4)
    signals = [model.signals(batch, frozenset()) for model in (student, teacher)]
    _, _, kl = compare(*signals, batch)
    with torch.no_grad():
        log_q, log_p = (
            model.hf(input_ids=batch.ids, attention_mask=batch.mask.long()).logits.flatten(0, 1)[batch.targets].double()
            for model in (student, teacher)
        )
    log_q, log_p = log_q.log_softmax(-1)[:, :61], log_p[:, : sizes[1]].log_softmax(-1)[:, :61]
    torch.testing.assert_close(kl.double(), (log_p.exp() * (log_p - log_q)).sum(-1), rtol=1e-4, atol=1e-5)


def test_a_batch_without_targets_adds_nothing():
    model, batch = tiny.language_model().eval(), tiny.batch(3)
    empty = Batch(batch.ids, batch.mask, batch.segments, torch.full_like(batch.labels, IGNORE), batch.rows)
    assert not total(model, model, [empty], tenths(COUNTS)).any()


def test_tenths_are_of_the_tokens_from_the_most_frequent_entry_on():
    #          25 of 100 leave two tenths empty; never seen: the last
    counts = torch.tensor([0, 25, 5, 5, 10, 10, 5, 40])
    assert tenths(counts).tolist() == [9, 4, 8, 9, 6, 7, 9, 0]
    assert tenths(torch.zeros(3, dtype=torch.int64)).tolist() == [0, 0, 0]
    even = tenths(torch.full((1000,), 3))
    assert torch.bincount(even).tolist() == [100] * 10
