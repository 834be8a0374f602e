"""Silent wrong answers that users of other systems met: each check rejects the code that gives them.

Where that code is one of `kd_compat`'s forms, the form itself is what is rejected. Others have their checks elsewhere:
padding counted and means of means in test_properties, a T^2 forgotten or taken twice in test_objectives, dropout left
on in tests/teachers/test_guard, gradients that no rank reduces in tests/distributed/test_split_invariance.
"""

import pytest
import torch
from torch.nn import functional as F

from megadistill.core.types import COUNT_KINDS, Dims
from megadistill.objectives.kd_compat import KDCompat
from megadistill.objectives.logits_mse import LogitsMSE
from megadistill.objectives.self_layers import SelfLayers
from megadistill.objectives.soft_ce import SoftCE
from megadistill.objectives.teacher_label import TeacherLabel
from megadistill.testing import states


def of(objective):
    """(student's logits [B, L, V], teacher's, mask [B, L]) -> the objective's mean, as a run divides it."""

    def ask(student, teacher, mask):
        batch = states.given(mask)
        size = student.shape[-1]
        loss = objective.build(Dims(1, size, size), Dims(1, teacher.shape[-1], teacher.shape[-1]))
        term = loss(states.answering(student), states.answering(teacher), batch)
        return (term.sum / batch.counts()[COUNT_KINDS.index(term.count)]).item()

    return ask


def soft(**fields):
    return of(SoftCE(kind="soft_ce", temperature=1, **fields))


def compat(original):
    return of(KDCompat(kind="kd_compat", original=original))


def between_layers(student, teacher, mask):
    """`self_layers`, whose last layer is the teacher and whose first is the student."""
    model = states.states(0, layers=2, width=student.shape[-1], heads=1)
    model.hidden[1:] = [student, teacher]
    model.weight, model.bias = torch.eye(student.shape[-1], dtype=student.dtype), torch.zeros(student.shape[-1])
    objective = SelfLayers(kind="self_layers", layers=[1])
    return objective.build(model.dims, None)(model.signals(), None, states.given(mask)).sum.item() / int(mask.sum())


OBJECTIVES = {
    "soft_ce": soft(),
    "soft_ce reversed": soft(divergence="reverse_kl"),
    "soft_ce between both": soft(divergence="jsd", beta=0.3),
    "hf_distil": compat("hf_distil"),
    "textbrewer": compat("textbrewer"),
    "teacher_label": of(TeacherLabel(kind="teacher_label")),
    "logits_mse": of(LogitsMSE(kind="logits_mse", reduction="sum")),
    "self_layers": between_layers,
}


def logits(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ROW = torch.ones(1, 6, dtype=torch.bool)
PAIR = logits(1, 6, 5, seed=1), logits(1, 6, 5, seed=2)


# ------------------------------------------------------------------ the checks


def check_direction(ask):
    """KL(teacher || student): dear for what the student leaves out, cheap for what it invents."""
    broad, narrow = (torch.tensor([[row]], dtype=torch.float64) for row in ([0.0, 0.0, -30.0], [0.0, -30.0, -30.0]))
    one = torch.ones(1, 1, dtype=torch.bool)
    assert ask(narrow, broad, one) > 10
    assert ask(broad, narrow, one) < 1


def check_mean_over_positions(ask):
    """The same positions in fewer, longer rows are the same mean."""
    whole = ask(*PAIR, ROW)
    for shape in ((2, 3), (6, 1)):
        assert ask(*(t.view(*shape, 5) for t in PAIR), ROW.view(shape)) == pytest.approx(whole, rel=1e-9)


def check_sum_over_the_vocabulary(ask):
    """Entries that neither model would ever predict change nothing, however many they are."""
    wider = (F.pad(t, (0, 11), value=-1e4) for t in PAIR)
    assert ask(*wider, ROW) == pytest.approx(ask(*PAIR, ROW), rel=1e-9)


def check_padded_vocabulary(ask):
    """Entries that a teacher has past the student's get nothing of its probability, though their logits are 0 where all
    others are low."""
    student, teacher = (t - 10 for t in PAIR)
    assert ask(student, F.pad(teacher, (0, 64)), ROW) == pytest.approx(ask(student, teacher, ROW), rel=1e-9)


def check_missing_vocabulary(ask):
    """Entries that a teacher lacks have probability 0 to it."""
    student, teacher = (t - 10 for t in PAIR)
    wider = F.pad(student, (0, 64))
    impossible = F.pad(teacher, (0, 64), value=-1e4)
    assert ask(wider, teacher, ROW) == pytest.approx(ask(wider, impossible, ROW), rel=1e-9)


# ------------------------------------------------------------------ the objectives


@pytest.mark.parametrize("name", ["soft_ce", "hf_distil", "textbrewer", "self_layers"])
def test_the_divergence_is_from_the_teacher(name):
    check_direction(OBJECTIVES[name])


def test_a_reversed_one_is_the_reverse():
    check_direction(lambda student, teacher, mask: OBJECTIVES["soft_ce reversed"](teacher, student, mask))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_means_are_over_positions_and_sums_over_the_vocabulary(name):
    check_mean_over_positions(OBJECTIVES[name])
    check_sum_over_the_vocabulary(OBJECTIVES[name])


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "self_layers"])
def test_padding_of_the_teachers_vocabulary_takes_no_probability(name):
    check_padded_vocabulary(OBJECTIVES[name])


@pytest.mark.parametrize("name", ["soft_ce", "soft_ce between both", "hf_distil"])  # reversed it is infinite
def test_what_a_teacher_lacks_it_never_predicts(name):
    check_missing_vocabulary(OBJECTIVES[name])


# ------------------------------------------------------------------ wrong implementations


def kl(student, teacher, mask):
    log_q, log_p = student[mask].log_softmax(-1), teacher[mask].log_softmax(-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True).item()


def swapped(student, teacher, mask):
    """lm-engine's `forward`."""
    return kl(teacher, student, mask)


def zeros_for_what_the_student_lacks(student, teacher, mask):
    """Liger's chunked losses."""
    return kl(F.pad(student, (0, teacher.shape[-1] - student.shape[-1])), teacher, mask)


def zeros_for_what_the_teacher_lacks(student, teacher, mask):
    return kl(student, F.pad(teacher, (0, student.shape[-1] - teacher.shape[-1])), mask)


WRONG = {
    "swapped": (swapped, check_direction),
    "reverse": (soft(divergence="reverse_kl"), check_direction),
    "between both": (soft(divergence="jsd"), check_direction),
    "batchmean of three dimensions": (compat("modelopt_core"), check_mean_over_positions),
    "mean over classes": (compat("pkd_mean"), check_sum_over_the_vocabulary),
    "mean over classes, with entropy": (compat("tinybert_mean"), check_sum_over_the_vocabulary),
    "student filled with zeros": (zeros_for_what_the_student_lacks, check_padded_vocabulary),
    "teacher filled with zeros": (zeros_for_what_the_teacher_lacks, check_missing_vocabulary),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_checks_reject(name):
    wrong, check = WRONG[name]
    with pytest.raises(AssertionError):
        check(wrong)
