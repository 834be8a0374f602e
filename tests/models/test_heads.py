"""A task's model answers as transformers' own does, whatever its family, and from whatever body it starts."""

import pytest
import torch

from megadistill.core.errors import UserError
from megadistill.core.types import Batch
from megadistill.models.heads import TaskHead, output_layer
from megadistill.models.initialize import Folder, Random, TeacherLayers
from megadistill.models.loading import load_for_task, load_pretrained, save_pretrained
from megadistill.models.scoring import outputs
from megadistill.models.students.hf import HFStudent
from megadistill.teachers.apart import FarModel
from megadistill.testing import tiny

LABEL, VALUE, SPAN = TaskHead("label", 3, ("a", "b", "c")), TaskHead("value", 1), TaskHead("span", 2)


def batch(rows=5, spans=False):
    """Ragged rows of one or two texts, of which no token is the padding."""
    made = tiny.batch(rows, seed=3)
    ids = torch.where(made.mask, made.ids, 0)
    segments = made.segments + (made.mask & (torch.arange(tiny.LENGTH) >= 4))
    labels = torch.full_like(ids, -100)
    labels[:, 0] = torch.arange(rows) % 3
    more = {"spans": torch.tensor([[0, 2]] * rows)} if spans else {}
    return Batch(ids, made.mask, segments, labels, made.rows, **more)


def theirs(model, given):
    inputs = {"input_ids": given.ids, "attention_mask": given.mask.long()}
    if getattr(model.hf.config, "type_vocab_size", 0) > 1:
        inputs["token_type_ids"] = (given.segments - 1).clamp(min=0)
    return model.hf(**inputs)


@pytest.mark.parametrize("head", [LABEL, VALUE], ids=["label", "value"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_one_answer_a_row(family, head):
    model = tiny.task_model(family, head).eval()
    given = batch()
    model.check_head()
    assert model.answers == head.kind
    assert model.dims.vocabulary == head.outputs
    ours = outputs(model.signals(given, frozenset()), given)
    torch.testing.assert_close(ours, theirs(model, given).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta", "albert", "modernbert"])
def test_a_start_and_an_end(family):
    model = tiny.task_model(family, SPAN).eval()
    given = batch(spans=True)
    model.check_head()
    ours, answer = outputs(model.signals(given, frozenset()), given), theirs(model, given)
    wanted = torch.stack([answer.start_logits, answer.end_logits], -1)
    torch.testing.assert_close(ours[given.mask], wanted[given.mask], rtol=1e-5, atol=1e-6)
    assert ours[~given.mask].isneginf().all()


def test_every_parameter_of_the_head_learns():
    model = tiny.task_model("bert", LABEL)
    given = batch()
    logits = model.signals(given, frozenset()).head(lambda h, w, b: torch.nn.functional.linear(h, w, b), given.targets)
    logits.square().sum().backward()
    idle = [name for name, p in model.hf.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.fixture
def folder(tmp_path):
    model = tiny.language_model("bert", 2, seed=5)
    save_pretrained(model, tmp_path / "lm", {name: p.detach() for name, p in model.named_parameters()})
    return tmp_path / "lm"


def test_a_language_model_becomes_a_tasks_model(folder):
    body = load_pretrained(str(folder)).hf.bert
    student = load_for_task(str(folder), LABEL, seed=1)
    assert torch.equal(student.hf.bert.encoder.layer[1].output.dense.weight, body.encoder.layer[1].output.dense.weight)
    again, other = load_for_task(str(folder), LABEL, seed=1), load_for_task(str(folder), LABEL, seed=2)
    assert torch.equal(student.hf.classifier.weight, again.hf.classifier.weight)
    assert not torch.equal(student.hf.classifier.weight, other.hf.classifier.weight)
    assert student.hf.config.id2label == {0: "a", 1: "b", 2: "c"}


def test_a_tasks_model_comes_back_with_its_head_and_goes_on_to_another_task(folder, tmp_path):
    student = load_for_task(str(folder), LABEL, seed=1)
    save_pretrained(student, tmp_path / "task", {name: p.detach() for name, p in student.named_parameters()})
    back = load_pretrained(str(tmp_path / "task"))
    assert back.answers == "label"
    assert torch.equal(back.hf.classifier.weight, student.hf.classifier.weight)
    assert torch.equal(
        load_for_task(str(tmp_path / "task"), LABEL, 9).hf.classifier.weight, student.hf.classifier.weight
    )
    two = load_for_task(str(tmp_path / "task"), TaskHead("label", 2), seed=1)
    assert two.dims.vocabulary == 2
    assert torch.equal(two.hf.bert.pooler.dense.weight, student.hf.bert.pooler.dense.weight)


def test_a_shallower_student_takes_layers_of_a_folder_or_of_its_teacher(folder):
    sizes = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {"max_position_embeddings": tiny.LENGTH}
    first = HFStudent(
        kind="hf", architecture="bert", config=sizes, init=Folder(kind="folder", path=str(folder), layers="last")
    ).build(None, tiny.VOCABULARY, False, 0, head=LABEL)
    source = load_pretrained(str(folder)).hf.bert.encoder.layer[1]
    assert torch.equal(first.hf.bert.encoder.layer[0].output.dense.weight, source.output.dense.weight)

    teacher = load_for_task(str(folder), LABEL, seed=4)
    init = TeacherLayers(kind="teacher_layers", layers=[0])
    student = HFStudent(kind="hf", config={"num_hidden_layers": 1}, init=init).build(
        teacher, tiny.VOCABULARY, False, 0, head=LABEL
    )
    assert torch.equal(student.hf.classifier.weight, teacher.hf.classifier.weight)  # the same task's head


def test_a_folders_own_config_is_what_a_shallower_student_changes(folder):
    init = Folder(kind="folder", path=str(folder), layers="last")
    student = HFStudent(kind="hf", config={"num_hidden_layers": 1}, init=init).build(
        None, tiny.VOCABULARY, False, 0, head=LABEL
    )
    whole = load_pretrained(str(folder)).hf.bert
    assert student.hf.config.hidden_size == whole.config.hidden_size
    assert student.hf.config.num_hidden_layers == 1
    assert torch.equal(student.hf.bert.embeddings.word_embeddings.weight, whole.embeddings.word_embeddings.weight)
    weight = student.hf.bert.encoder.layer[0].output.dense.weight
    assert torch.equal(weight, whole.encoder.layer[1].output.dense.weight)


def test_layers_of_a_folder_need_a_depth_to_put_them_in(folder):
    with pytest.raises(UserError, match="the student is the folder's model as it is"):
        HFStudent(kind="hf", init=Folder(kind="folder", path=str(folder), layers=[0])).build(
            None, tiny.VOCABULARY, False, 0, head=LABEL
        )


def test_a_folder_that_lacks_part_of_its_body_is_refused(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("bert.encoder.layer.1.output.dense.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="lacks weights"):
        load_for_task(str(folder), LABEL, seed=1)


def test_an_architecture_without_such_a_head_is_told():
    with pytest.raises(UserError, match="no model for a task's span"):
        HFStudent(kind="hf", architecture="vit", init=Random()).build(None, tiny.VOCABULARY, False, 0, head=SPAN)


def test_a_mean_over_positions_is_not_mistaken_for_the_first():
    model = tiny.task_model("modernbert", LABEL, classifier_pooling="mean")
    with pytest.raises(UserError, match="does not know"):
        model.check_head()


def test_language_models_are_as_they_were():
    model = tiny.language_model()
    assert model.answers == "tokens"
    assert model.num_tokens == model.dims.vocabulary == 61


@pytest.mark.parametrize("architecture", tiny.FAMILIES)
def test_a_model_whose_body_is_elsewhere_keeps_its_head(architecture):
    """transformers tells of no output embeddings where there are no input embeddings."""
    model = tiny.language_model(architecture)
    found = output_layer(model.hf)
    FarModel(model.hf, None, tiny.CPU).let_go()
    assert output_layer(model.hf) is found
