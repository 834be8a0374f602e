"""The report on how a student starts."""

import pytest

from megadistill.models.initialize import Random, TeacherLayers, copy_teacher_layers
from megadistill.models.likeness import likeness
from megadistill.models.students.hf import HFStudent
from megadistill.testing import tiny, trained


def test_a_copy_is_its_teacher():
    teacher, student = tiny.language_model("bert", 2, seed=1), tiny.language_model("bert", 2, seed=2)
    copy_teacher_layers(student.hf, teacher.hf, "first")
    found = likeness(student, teacher, tiny.batch(4))
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["agreement_top1"] == 1
    assert found["cosine"] == {0: pytest.approx(1), 1: pytest.approx(1), 2: pytest.approx(1)}
    assert found["agreement"] == {1: 1, 2: 1}
    assert student.training


def test_a_student_of_half_the_layers_is_more_like_it_than_a_random_one():
    teacher = trained.teacher()
    reports = []
    for init in (TeacherLayers(kind="teacher_layers", layers="uniform"), Random()):
        student = HFStudent(kind="hf", config={"n_layer": 3}, init=init).build(teacher, 4096, causal=True, seed=0)
        reports.append(likeness(student, teacher, trained.batch(4)))
    assert reports[0]["kl"] < reports[1]["kl"]
    assert reports[0]["agreement_top1"] > reports[1]["agreement_top1"]
    assert reports[0]["cosine"][0] == pytest.approx(1)
    assert reports[1]["cosine"][0] < 0.5
    assert set(reports[0]["cosine"]) == {0, 1, 2, 3}
    assert set(reports[0]["agreement"]) == {1, 2, 3}
    assert reports[0]["agreement"][2] > reports[1]["agreement"][2]


def test_other_widths_have_no_cosine():
    student, teacher = tiny.language_model("bert", 2), tiny.language_model("bert", 2, hidden_size=32)
    found = likeness(student, teacher, tiny.batch(2))
    assert found["cosine"] == {}
    assert set(found["agreement"]) == {1, 2}
    assert found["kl"] >= 0
