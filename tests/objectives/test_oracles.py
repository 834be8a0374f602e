"""Every objective against its published formula, written as plainly as it stands there, one position at a time."""

import math

import pytest
import torch

from megadistill.core.types import IGNORE, Attention, Dims
from megadistill.objectives.attention_mse import AttentionMSE
from megadistill.objectives.attention_relation import AttentionRelation
from megadistill.objectives.cosine import Cosine
from megadistill.objectives.embedding_mse import EmbeddingMSE
from megadistill.objectives.hidden_mse import HiddenMSE
from megadistill.objectives.logits_mse import LogitsMSE
from megadistill.objectives.pkd import PKD
from megadistill.objectives.teacher_label import TeacherLabel
from megadistill.testing import states
from megadistill.testing.states import LABELS, MASK, STUDENT, TEACHER

BATCH = states.batch(3)


def models(causal=False, **teacher):
    return states.states(1, causal=causal), states.states(2, **{"layers": 4, "causal": causal, **teacher})


def term(objective, student, teacher, batch=BATCH):
    loss = objective.build(student.dims, teacher.dims)
    if isinstance(loss, torch.nn.Module):
        loss = loss.double()
    return loss(student.signals(), teacher.signals(), batch), loss


def attended(batch=BATCH):
    return [(b, i) for b, i in batch.mask.nonzero().tolist()]


def keys(causal, b, i, batch=BATCH):
    return [j for j in range(batch.mask.shape[1]) if batch.mask[b, j] and (j <= i or not causal)]


def logits(model):
    return model.hidden[-1] @ model.weight.T + model.bias


def close(term, expected, count):
    assert term.count == count
    assert term.sum.item() == pytest.approx(float(torch.as_tensor(expected).detach()), abs=1e-9)


# ------------------------------------------------------------------ the fixture that can be computed by hand


def fixture(objective):
    dims = Dims(layers=1, hidden=3, vocabulary=3)
    student, teacher = states.answering(STUDENT), states.answering(TEACHER)
    return objective.build(dims, dims)(student, teacher, states.given(MASK, LABELS))


@pytest.mark.parametrize(
    ("objective", "mean"),
    [
        (Cosine(kind="cosine"), 0.642857142857),
        (LogitsMSE(kind="logits_mse", reduction="sum"), 5.0),
        (LogitsMSE(kind="logits_mse"), 5 / 3),
        (TeacherLabel(kind="teacher_label"), 1.7531091266),
        (HiddenMSE(kind="hidden_mse"), 5 / 3),
    ],
    ids=lambda value: getattr(value, "kind", None),
)
def test_fixture(objective, mean):
    term = fixture(objective)
    assert term.count == "tokens"
    assert term.sum.item() / 2 == pytest.approx(mean, abs=1e-9)


# ------------------------------------------------------------------ logits


def test_teacher_label_is_the_cross_entropy_with_its_argmax():
    student, teacher = models()
    ours, theirs = logits(student), logits(teacher)
    expected = sum(-ours[b, i].log_softmax(-1)[theirs[b, i].argmax()] for b, i in attended())
    close(term(TeacherLabel(kind="teacher_label"), student, teacher)[0], expected, "tokens")


def test_teacher_label_reads_no_label_and_leaves_the_teachers_padding_out():
    student, teacher = models(vocabulary=9)
    teacher.bias[8] = 100.0  # an entry past the student's vocabulary that would always win
    ours, theirs = logits(student), logits(teacher)[..., :7]
    expected = sum(-ours[b, i].log_softmax(-1)[theirs[b, i].argmax()] for b, i in attended())
    unlabelled = states.given(BATCH.mask)
    close(term(TeacherLabel(kind="teacher_label"), student, teacher, unlabelled)[0], expected, "tokens")


@pytest.mark.parametrize("center", [False, True])
def test_logits_mse(center):
    student, teacher = models(vocabulary=9, width=8)
    difference = logits(student) - logits(teacher)[..., :7]
    if center:
        difference = difference - difference.mean(-1, keepdim=True)
    expected = sum((difference[b, i] ** 2).sum() / 7 for b, i in attended())
    close(term(LogitsMSE(kind="logits_mse", center=center), student, teacher)[0], expected, "tokens")


def test_logits_mse_over_targets():
    student, teacher = models()
    difference = logits(student) - logits(teacher)
    targets = (BATCH.labels != IGNORE).nonzero().tolist()
    expected = sum((difference[b, i] ** 2).sum() for b, i in targets)
    close(term(LogitsMSE(kind="logits_mse", scope="targets", reduction="sum"), student, teacher)[0], expected, "asked")


# ------------------------------------------------------------------ hidden states


def test_cosine_over_chosen_layers():
    student, teacher = models()
    expected = 0.0
    for layer, theirs, weight in ((0, 0, 2.0), (2, 3, 0.5)):
        for b, i in attended():
            s, t = student.hidden[layer][b, i], teacher.hidden[theirs][b, i]
            expected += weight * (1 - (s @ t) / (s.norm() * t.norm()))
    objective = Cosine(kind="cosine", layers={2: 3, 0: 0}, layer_weights=[2.0, 0.5])
    close(term(objective, student, teacher)[0], expected, "tokens")


@pytest.mark.parametrize("projection", ["auto", "per_layer"])
def test_hidden_mse_through_projections(projection):
    student, teacher = models(width=8)
    objective = HiddenMSE(kind="hidden_mse", projection=projection, layer_weights=[1.0, 3.0])
    result, loss = term(objective, student, teacher)
    assert len(loss.fit) == {"auto": 1, "per_layer": 2}[projection]
    expected = 0.0
    for index, (layer, theirs, weight) in enumerate(((1, 2, 1.0), (2, 4, 3.0))):
        fit = loss.fit[index % len(loss.fit)]
        for b, i in attended():
            fitted = fit.weight @ student.hidden[layer][b, i] + fit.bias
            expected += weight * ((fitted - teacher.hidden[theirs][b, i]) ** 2).sum() / 8
    close(result, expected, "tokens")


def test_hidden_mse_of_equal_widths_learns_no_projection():
    student, teacher = models()
    assert not list(term(HiddenMSE(kind="hidden_mse"), student, teacher)[1].parameters())


def test_hidden_mse_over_all_positions_is_torchs_mean():
    """TinyBERT's code: `MSELoss()` of whole states, padding included, summed over layers."""
    student, teacher = models()
    result, _ = term(HiddenMSE(kind="hidden_mse", positions="all", layers={0: 0, 1: 2, 2: 4}), student, teacher)
    mse = torch.nn.functional.mse_loss
    expected = sum(mse(student.hidden[m], teacher.hidden[2 * m]) for m in range(3))
    close(result, expected * 4, "sequences")


def test_embedding_mse_compares_what_enters_the_first_layer():
    student, teacher = models(width=8)
    result, loss = term(EmbeddingMSE(kind="embedding_mse"), student, teacher)
    fit = loss.fit[0]
    expected = sum(
        ((fit.weight @ student.hidden[0][b, i] + fit.bias - teacher.hidden[0][b, i]) ** 2).mean() for b, i in attended()
    )
    close(result, expected, "tokens")


@pytest.mark.parametrize(("layers", "theirs"), [("skip", [2, 4]), ("last", [4, 5])])
def test_pkd(layers, theirs):
    """Equation 7: | h_s/|h_s| - h_t/|h_t| |^2 of [CLS] over all student layers but the last."""
    student, teacher = states.states(1, layers=3), states.states(2, layers=6)
    expected = 0.0
    for layer, other in zip((1, 2), theirs, strict=True):
        for b in range(4):
            if BATCH.mask[b, 0]:
                s, t = student.hidden[layer][b, 0], teacher.hidden[other][b, 0]
                expected += ((s / s.norm() - t / t.norm()) ** 2).sum()
    close(term(PKD(kind="pkd", layers=layers, reduction="sum"), student, teacher)[0], expected, "sequences")
    close(term(PKD(kind="pkd", layers=layers), student, teacher)[0], expected / (2 * 6), "sequences")


def test_pkd_of_all_tokens_unnormalised():
    student, teacher = models()
    expected = sum(((student.hidden[1][b, i] - teacher.hidden[2][b, i]) ** 2).mean() for b, i in attended())
    close(term(PKD(kind="pkd", positions="tokens", normalize=False), student, teacher)[0], expected, "tokens")


# ------------------------------------------------------------------ attention


def scores(model, layer, b, head, i):
    return torch.stack([
        model.scale * model.query[layer - 1][b, head, i] @ model.key[layer - 1][b, head, j] for j in range(5)
    ])  # fmt: skip


@pytest.mark.parametrize("causal", [False, True])
def test_attention_mse(causal):
    student, teacher = models(causal)
    expected = 0.0
    for layer, theirs in ((1, 2), (2, 4)):
        for b, i in attended():
            seen = keys(causal, b, i)
            for head in range(2):
                difference = scores(student, layer, b, head, i) - scores(teacher, theirs, b, head, i)
                expected += (difference[seen] ** 2).mean() / 2
    close(term(AttentionMSE(kind="attention_mse"), student, teacher)[0], expected, "tokens")


@pytest.mark.parametrize("positions", ["tokens", "all"])
def test_the_gram_form_is_the_same_sum(positions):
    student, teacher = models()
    forms = [
        term(AttentionMSE(kind="attention_mse", form=form, positions=positions), student, teacher)[0].sum.item()
        for form in ("pairs", "gram")
    ]
    assert forms[1] == pytest.approx(forms[0], rel=1e-12)


@pytest.mark.parametrize("form", ["pairs", "gram"])
def test_attention_mse_over_all_positions_is_tinyberts_code(form):
    """Scores at or below -100, which are those of masked keys, become 0 on both sides; then `MSELoss()` over all."""
    student, teacher = models()
    hidden = ~BATCH.mask[:, None, None, :]

    def published(model, layer):
        scores = 0.7 * model.query[layer - 1] @ model.key[layer - 1].transpose(-1, -2)
        scores = scores + torch.where(hidden, -10_000.0, 0.0)
        return torch.where(scores <= -1e2, torch.zeros_like(scores), scores)

    mse = torch.nn.functional.mse_loss
    expected = sum(mse(published(student, m), published(teacher, 2 * m)) for m in (1, 2))
    result, _ = term(AttentionMSE(kind="attention_mse", positions="all", form=form), student, teacher)
    close(result, 4 * expected, "sequences")


def kl(p_scores, q_scores):
    p = p_scores.softmax(-1)
    return (p * (p_scores.log_softmax(-1) - q_scores.log_softmax(-1))).sum()


@pytest.mark.parametrize("causal", [False, True])
def test_minilm_matches_attention_and_value_relation_of_the_last_layers(causal):
    student, teacher = models(causal)
    expected = 0.0
    for b, i in attended():
        seen = keys(causal, b, i)
        for head in range(2):
            values = [
                torch.stack([v[b, head, i] @ v[b, head, j] / math.sqrt(3) for j in seen])
                for v in (student.value[-1], teacher.value[-1])
            ]
            attention = [scores(m, layer, b, head, i)[seen] for m, layer in ((student, 2), (teacher, 4))]
            expected += (kl(attention[1], attention[0]) + kl(values[1], values[0])) / 2
    close(term(AttentionRelation(kind="attention_relation"), student, teacher)[0], expected, "tokens")


def test_minilm_v2_cuts_its_own_heads_whatever_the_models_have():
    student, teacher = models(width=12, heads=4)
    objective = AttentionRelation(
        kind="attention_relation", relations=["qq", "kk", "vv"], relation_weights=[0.5, 1, 2], heads=3, teacher_layer=3
    )
    expected = 0.0
    for weight, side in ((0.5, "query"), (1, "key"), (2, "value")):
        for b, i in attended():
            seen = keys(False, b, i)
            relations = []
            for model, layer in ((student, 2), (teacher, 3)):
                flat = getattr(model, side)[layer - 1][b].transpose(0, 1).reshape(5, -1)
                heads = flat.chunk(3, dim=-1)
                relations.append([torch.stack([h[i] @ h[j] / math.sqrt(h.shape[1]) for j in seen]) for h in heads])
            expected += weight * sum(kl(t, s) for s, t in zip(*relations, strict=True)) / 3
    close(term(objective, student, teacher)[0], expected, "tokens")


def test_grouped_keys_and_values_serve_several_query_heads():
    student, teacher = models()
    whole = student.signals()
    for layer, one in list(whole.attention.items()):
        repeated = (torch.repeat_interleave(x[:, :1], 2, dim=1) for x in (one.key, one.value))
        whole.attention[layer] = Attention(one.query, *repeated, one.scale, one.visible)
    grouped = student.signals()
    for layer, one in list(grouped.attention.items()):
        grouped.attention[layer] = Attention(one.query, one.key[:, :1], one.value[:, :1], one.scale, one.visible)
    for objective in (
        AttentionMSE(kind="attention_mse"),
        AttentionMSE(kind="attention_mse", form="gram"),
        AttentionRelation(kind="attention_relation"),
        AttentionRelation(kind="attention_relation", relations=["qk"], heads=3),
    ):
        loss = objective.build(student.dims, teacher.dims)
        sums = [loss(ours, teacher.signals(), BATCH).sum.item() for ours in (grouped, whole)]
        assert sums[0] == pytest.approx(sums[1], rel=1e-12)


def test_rows_are_computed_in_pieces_with_one_result(monkeypatch):
    student, teacher = models()
    objective = AttentionMSE(kind="attention_mse")
    whole = term(objective, student, teacher)[0].sum.item()
    monkeypatch.setattr("megadistill.objectives.attention_mse.SCORES", 1)
    assert term(objective, student, teacher)[0].sum.item() == pytest.approx(whole, rel=1e-12)


def test_the_other_direction_of_kl_is_another_number():
    """The oracle above would reject KL(student || teacher)."""
    student, teacher = models()
    ours = term(AttentionRelation(kind="attention_relation"), student, teacher)[0].sum.item()
    same = AttentionRelation(kind="attention_relation", student_layer=4, teacher_layer=2)
    swapped = term(same, teacher, student)[0].sum.item()
    assert abs(ours - swapped) > 0.1
