"""Other projects' soft-target losses: the values of the fixture, and torch's own functions as their code calls them."""

from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from megadistill.core.types import COUNT_KINDS, IGNORE, Dims
from megadistill.objectives.kd_compat import ORIGINALS, KDCompat
from megadistill.objectives.logits_mse import LogitsMSE
from megadistill.objectives.soft_ce import SoftCE
from megadistill.testing import states
from megadistill.testing.states import LABELS, MASK, STUDENT, TEACHER


def mean(objective, student, teacher, batch):
    """The objective as a run computes it on one batch, of logits [B, S, V]: its sum over its count."""
    dims = Dims(1, student.shape[-1], student.shape[-1])
    term = objective.build(dims, dims)(states.answering(student), states.answering(teacher), batch)
    return term.sum / batch.counts()[COUNT_KINDS.index(term.count)]


def value(original, temperature):
    objective = KDCompat(kind="kd_compat", original=original, temperature=temperature)
    return mean(objective, STUDENT, TEACHER, states.given(MASK, LABELS)).item()


@pytest.mark.parametrize(
    ("originals", "expected"),
    [
        (["liger_kl"], [0.7083187360, 0.1992888099, 0.0514947543]),
        (["hf_distil", "distillkit"], [0.7083187360, 0.7971552395, 0.8239160682]),
        (["modelopt_hf", "maxtext", "torchdistill_alpha"], [0.7773658119, 0.8426338008, 0.8388704859]),
        (["pkd_mean", "deit_numel", "neural_compressor_kl"], [0.2591219373, 0.2808779336, 0.2796234953]),
        (["textbrewer", "torchtune", "miniplm"], [1.5407143179, 1.2194801466, 1.1295944039]),
    ],
)
def test_the_fixture(originals, expected):
    for original in originals:
        for temperature, number in zip((1.0, 2.0, 4.0), expected, strict=True):
            assert value(original, temperature) == pytest.approx(number, abs=1e-9), (original, temperature)


def called(original, s, t, mask, temperature):
    """The loss of logits [B, S, V] by the calls that the project's code makes; `mask` [B, S] is what it counts, if it
    leaves anything out."""
    log_q, p = F.log_softmax(s / temperature, -1), F.softmax(t / temperature, -1)
    log_p = F.log_softmax(t / temperature, -1)
    rows_q, rows_p = log_q.flatten(0, 1), p.flatten(0, 1)
    each = F.kl_div(log_q, p, reduction="none").sum(-1)
    square = temperature**2
    return {
        "hf_distil": lambda: F.kl_div(log_q[mask], p[mask], reduction="batchmean") * square,
        "distillkit": lambda: square * (each * mask).sum() / mask.sum(),
        "modelopt_hf": lambda: F.kl_div(rows_q, rows_p, reduction="batchmean") * square,
        "modelopt_core": lambda: F.kl_div(log_q, p, reduction="batchmean") * square,
        "maxtext": lambda: each.mean() * square,
        "torchdistill_alpha": lambda: square * F.kl_div(rows_q, rows_p, reduction="batchmean"),
        "torchdistill_batchmean": lambda: F.kl_div(rows_q, rows_p, reduction="batchmean"),
        "pkd_mean": lambda: F.kl_div(log_q, p, reduction="mean") * square,
        "deit_numel": lambda: F.kl_div(log_q, log_p, reduction="sum", log_target=True) * square / log_q.numel(),
        "neural_compressor_kl": lambda: F.kl_div(log_q, p) * square,
        "neural_compressor_ce": lambda: -(p * log_q).sum(-1).mean() * square,
        "liger_kl": lambda: F.kl_div(log_q[mask], p[mask], reduction="sum") / mask.sum(),
        "distily": lambda: each.mean(),
        "textbrewer": lambda: -(p[mask] * log_q[mask]).sum(-1).mean(),
        "torchtune": lambda: -((p * log_q).sum(-1) * mask).sum() / mask.sum(),
        "miniplm": lambda: F.cross_entropy(s[mask] / temperature, p[mask]),
        "tinybert_mean": lambda: (-p * log_q).mean(),
    }[original]()


def given(seed=0):
    """Logits of both models [3, 4, 5], and a batch with padding and labels."""
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(3, 4, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(4) < torch.tensor([[4], [2], [3]])
    labels = torch.where(mask & (torch.rand(3, 4, generator=draw) < 0.6), 1, IGNORE)
    return student.requires_grad_(), teacher, states.given(mask, labels)


def same(ours, theirs, student):
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    gradients = [torch.autograd.grad(loss, student, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)


@pytest.mark.filterwarnings("ignore:reduction")  # that `mean` divides by the classes is what is meant here
@pytest.mark.parametrize("original", ORIGINALS)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_value_and_gradient_are_those_of_the_originals_calls(original, temperature):
    student, teacher, batch = given()
    objective = KDCompat(kind="kd_compat", original=original, temperature=temperature)
    same(mean(objective, student, teacher, batch), called(original, student, teacher, batch.mask, temperature), student)
    # given the logits of some positions alone, nothing is padding to the code, and every position is a row
    objective = objective.model_copy(update={"scope": "targets"})
    s, t = (logits.flatten(0, 1)[batch.targets].unsqueeze(1) for logits in (student, teacher))
    everything = torch.ones(s.shape[:2], dtype=torch.bool)
    same(mean(objective, student, teacher, batch), called(original, s, t, everything, temperature), student)


@pytest.mark.filterwarnings("ignore:reduction")
def test_no_two_forms_are_one_number():
    """Whoever takes one for another is noticed: one batch tells all forms apart."""
    assert set(get_args(KDCompat.model_fields["original"].annotation)) == set(ORIGINALS)
    student, teacher, batch = given()
    numbers = {
        form: round(called(original, student, teacher, batch.mask, 2.0).item(), 9)
        for original, form in ORIGINALS.items()
    }
    assert len(set(numbers.values())) == len(numbers) == 9


def test_losses_of_others_that_are_objectives_of_their_own():
    student, teacher, batch = given()
    labelled = batch.labels != IGNORE

    def ours(objective, **fields):
        return mean(objective(**fields), student, teacher, batch)

    # TextBrewer's kd_mse; DistilBERT's logit loss
    square = F.mse_loss(student[labelled] / 4, teacher[labelled] / 4)
    same(ours(LogitsMSE, kind="logits_mse", scope="targets", temperature=4), square, student)
    square = F.mse_loss(student[batch.mask], teacher[batch.mask], reduction="sum") / batch.mask.sum()
    same(ours(LogitsMSE, kind="logits_mse", reduction="sum"), square, student)
    # TRL's generalised Jensen-Shannon at the labels, T = 1; at its ends the two KLs, which it switches between
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    beta = torch.tensor(0.3, dtype=torch.float64)
    log_m = torch.logsumexp(torch.stack([log_p + beta.log(), log_q + (1 - beta).log()]), 0)
    options = {"reduction": "none", "log_target": True}
    jsd = beta * F.kl_div(log_m, log_p, **options) + (1 - beta) * F.kl_div(log_m, log_q, **options)
    at_labels = {"kind": "soft_ce", "scope": "targets", "temperature": 1}
    same(ours(SoftCE, **at_labels, divergence="jsd", beta=0.3), jsd[labelled].sum() / labelled.sum(), student)
    for divergence, of, to in (("forward_kl", log_q, log_p), ("reverse_kl", log_p, log_q)):
        kl = F.kl_div(of, to, **options)[labelled].sum() / labelled.sum()
        same(ours(SoftCE, **at_labels, divergence=divergence), kl, student)
    # Automodel's, at the labels, of the global batch
    kl = 4 * F.kl_div((student / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction="none")[labelled].sum()
    same(ours(SoftCE, **{**at_labels, "temperature": 2}), kl / labelled.sum(), student)
