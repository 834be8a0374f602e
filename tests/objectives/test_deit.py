"""DeiT's two losses (Touvron et al. 2021, equations 2 and 3) beside a plain computation, and through both heads."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from megadistill.core.errors import UserError
from megadistill.models.heads import TaskHead
from megadistill.models.images import ImageModel, default_processor
from megadistill.models.students.hf import HFStudent
from megadistill.objectives.hard_ce import HardCE
from megadistill.objectives.kd_compat import KDCompat
from megadistill.objectives.soft_ce import SoftCE
from megadistill.objectives.step import DistillStep
from megadistill.objectives.teacher_label import TeacherLabel
from megadistill.run.config import check
from megadistill.run.fitting import unfit
from megadistill.teachers.online import OnlineSource
from megadistill.testing import tiny

SIZE, CLASSES, ROWS = 16, 5, 8
HEAD = TaskHead("image", CLASSES, tuple("abcde"), default_processor(SIZE), SIZE)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "patch_size": 8}
ON_CLASS = {"kind": "hard_ce", "head": "class"}


def model(architecture, seed):
    config = {**SIZES, "initializer_range": 0.3}
    return HFStudent(kind="hf", architecture=architecture, config=config).build(None, 0, False, seed, {}, HEAD)


def step_of(*objectives):
    student, teacher = model("deit", 1), OnlineSource("tiny", model("vit", 2))
    return DistillStep(student, objectives, [o.build(student.dims, teacher.dims) for o in objectives]), teacher


def loss_of(step, teacher, batch, counts):
    signals = teacher.signals(batch, step.needs)
    return step(batch, signals, (1 / counts.clamp(min=1)).float())[0]


def logits_of(step, teacher, batch):
    """(class head's, distillation head's, teacher's) by transformers' own forward, in fp64."""
    student: ImageModel = step.student
    ours = student.hf.double()(pixel_values=student.view(batch.pixels).double())
    with torch.no_grad():
        theirs = teacher.model.hf.double()(pixel_values=teacher.model.view(batch.pixels).double()).logits
    return ours.cls_logits, ours.distillation_logits, theirs


def hard(batch, ours, distilled, theirs):
    """Equation 3."""
    return cross_entropy(ours, batch.labels.flatten()) / 2 + cross_entropy(distilled, theirs.argmax(1)) / 2


def soft(batch, ours, distilled, theirs, share=0.1, tau=3.0):
    """Equation 2, with the teacher's share on the head of its token."""
    divergence = kl_div(log_softmax(distilled / tau, 1), (theirs / tau).softmax(1), reduction="batchmean")
    return (1 - share) * cross_entropy(ours, batch.labels.flatten()) + share * tau**2 * divergence


def soft_of_their_code(batch, ours, distilled, theirs, share=0.5, tau=1.0):
    """losses.py of facebookresearch/deit: the divergence is divided by the number of logits."""
    given = {"reduction": "sum", "log_target": True}
    divergence = kl_div(log_softmax(distilled / tau, 1), log_softmax(theirs / tau, 1), **given)
    divergence = divergence * tau**2 / distilled.numel()
    return (1 - share) * cross_entropy(ours, batch.labels.flatten()) + share * divergence


FORMS = {
    "hard": (
        hard,
        HardCE(**ON_CLASS, weight=0.5),
        TeacherLabel(kind="teacher_label", weight=0.5, head="distillation", scope="targets"),
    ),
    "soft": (
        soft,
        HardCE(**ON_CLASS, weight=0.9),
        SoftCE(kind="soft_ce", weight=0.1, temperature=3, head="distillation", scope="targets"),
    ),
    "code": (
        soft_of_their_code,
        HardCE(**ON_CLASS, weight=0.5),
        KDCompat(kind="kd_compat", original="deit_numel", weight=0.5, head="distillation", scope="targets"),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_loss_and_gradient_are_those_of_the_paper(form):
    equation, *objectives = FORMS[form]
    step, teacher = step_of(*objectives)
    batch = tiny.images(ROWS, SIZE, CLASSES)
    loss = loss_of(step, teacher, batch, batch.counts())
    loss.backward()
    ours = {name: p.grad.double() for name, p in step.student.named_parameters() if p.grad is not None}
    step.zero_grad()
    plain = equation(batch, *logits_of(step, teacher, batch))
    plain.backward()
    theirs = {name: p.grad for name, p in step.student.named_parameters() if p.grad is not None}
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("form", FORMS)
def test_each_term_reaches_its_own_head_and_both_reach_the_body(form):
    _, *objectives = FORMS[form]
    step, teacher = step_of(*objectives)
    batch = tiny.images(ROWS, SIZE, CLASSES)
    shares = (1 / batch.counts()).float()
    signals = teacher.signals(batch, step.needs)
    names, learning = zip(*step.student.named_parameters(), strict=True)
    ours = step.student.signals(batch, frozenset())
    total, _ = step.mixture(ours, signals, batch, shares, 1)
    terms = list(step.mixture.apart(ours, signals, batch, shares, 1))
    assert torch.allclose(sum(terms), total)
    for term, own, other in ((terms[0], "cls_", "distillation_"), (terms[1], "distillation_", "cls_")):
        gradients = torch.autograd.grad(term, learning, retain_graph=True, allow_unused=True)
        norms = {n: 0.0 if g is None else float(g.norm()) for n, g in zip(names, gradients, strict=True)}
        assert norms[f"hf.{own}classifier.weight"] > 1e-4
        assert norms[f"hf.{other}classifier.weight"] == 0
        assert norms["hf.deit.embeddings.patch_embeddings.projection.weight"] > 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_the_gradient_does_not_depend_on_micro_batches(form):
    _, *objectives = FORMS[form]
    batch, found = tiny.images(ROWS, SIZE, CLASSES), []
    for micro in (8, 4, 3):
        step, teacher = step_of(*objectives)
        for part in batch.split(micro):
            loss_of(step, teacher, part, batch.counts()).backward()
        found.append(torch.cat([p.grad.flatten() for p in step.parameters() if p.grad is not None]))
    for other in found[1:]:
        assert float((other - found[0]).norm() / found[0].norm()) < 1e-5


def test_without_a_head_the_whole_answer_learns():
    step, teacher = step_of(HardCE(kind="hard_ce"))
    batch = tiny.images(ROWS, SIZE, CLASSES)
    loss = loss_of(step, teacher, batch, batch.counts())
    ours, distilled, _ = logits_of(step, teacher, batch)
    plain = cross_entropy((ours + distilled) / 2, batch.labels.flatten())
    assert float(loss.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)


def config(*objectives):
    return check(
        {
            "name": "x",
            "task": {"kind": "image", "train": ["x"], "dev": ["x"]},
            "teacher": {"kind": "online", "path": "x"},
            "student": {"kind": "hf"},
            "objectives": list(objectives),
            "batch": {"global_size": 1, "micro_size": 1},
            "train": {"steps": 1},
        },
        "x.yaml",
    )


def test_heads_that_are_not_there_and_objectives_on_states_are_refused():
    one_headed = model("vit", 1)
    (problem,) = unfit(config(ON_CLASS), one_headed, [], None, 0)
    assert problem.what == "objectives.0.head (hard_ce): the student (ViTForImageClassification) has only one head"
    assert not list(unfit(config(ON_CLASS), model("deit", 1), [], None, 0))
    assert not list(unfit(config({"kind": "hard_ce"}), one_headed, [], None, 0))
    with pytest.raises(UserError, match=r"\(cosine\): it cannot learn a task's images"):
        config({"kind": "cosine"})
    with pytest.raises(UserError, match="set scope: targets"):
        config({"kind": "teacher_label"})
