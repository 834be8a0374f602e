"""What a student's config may say, and what is said of what it may not."""

import pytest
import torch

from megadistill.core.errors import UserError
from megadistill.models.heads import TaskHead
from megadistill.models.initialize import Folder, TeacherLayers
from megadistill.models.loading import load_pretrained, save_pretrained
from megadistill.models.students.hf import HFStudent
from megadistill.testing import tiny


def build(causal=False, teacher=None, **fields):
    return HFStudent(kind="hf", **fields).build(teacher, 61, causal, seed=0)


@pytest.mark.parametrize("architecture", tiny.FAMILIES)
def test_every_family_is_built_shallower_from_its_teacher(architecture):
    teacher = tiny.language_model(architecture, 4, seed=1)
    depth = {"distilbert": "n_layers", "gpt2": "n_layer"}.get(architecture, "num_hidden_layers")
    layers = [0, 1] if architecture == "modernbert" else "uniform"
    student = HFStudent(kind="hf", config={depth: 2}, init=TeacherLayers(kind="teacher_layers", layers=layers)).build(
        teacher, 61, architecture in tiny.CAUSAL, seed=0
    )
    assert student.dims.layers == 2
    assert student.hf.config.model_type == architecture


@pytest.mark.parametrize("depth", ["num_hidden_layers"])
def test_a_shallower_student_takes_the_attention_kinds_of_the_layers_it_takes(depth):
    teacher = tiny.language_model("modernbert", 4, seed=1)  # full, sliding, full, sliding
    for layers, kinds in (([0, 2], ["full"] * 2), ("last", ["full", "sliding"])):
        init = TeacherLayers(kind="teacher_layers", layers=layers)
        if layers == "last":
            with pytest.raises(UserError, match="the teacher has no"):  # its layer 0 has no norm before its attention
                build(teacher=teacher, config={depth: 3}, init=TeacherLayers(kind="teacher_layers", layers=[1, 0, 0]))
        student = build(teacher=teacher, config={depth: 2}, init=init)
        assert student.hf.config.layer_types == [f"{kind}_attention" for kind in kinds]


def test_frozen_parameters_are_named_by_pattern():
    student = build(teacher=tiny.language_model(), freeze=["*position_embeddings*", "*.layer.0.*"])
    frozen = [name for name, p in student.hf.named_parameters() if not p.requires_grad]
    assert "bert.embeddings.position_embeddings.weight" in frozen
    assert all("position_embeddings" in name or ".layer.0." in name for name in frozen)
    assert len(frozen) == 17


@pytest.mark.parametrize(
    ("freeze", "message"), [(["*wte*"], "no parameter is named like"), (["*"], "nothing to learn")]
)
def test_patterns_that_freeze_nothing_or_everything_are_refused(freeze, message):
    with pytest.raises(UserError, match=message):
        build(teacher=tiny.language_model(), freeze=freeze)


def test_config_beside_a_folder_changes_the_folders_own(tmp_path):
    made = tiny.language_model()
    save_pretrained(made, tmp_path, {name: p.detach() for name, p in made.named_parameters()})
    student = build(config={"hidden_act": "relu"}, init=Folder(kind="folder", path=str(tmp_path)))
    assert student.hf.config.hidden_act == "relu"
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(student.parameters(), made.parameters(), strict=True))
    with pytest.raises(UserError, match="2 entries for 1 student layers"):
        build(config={"num_hidden_layers": 1}, init=Folder(kind="folder", path=str(tmp_path)))
    with pytest.raises(UserError, match="no field depth"):
        build(config={"depth": 1}, init=Folder(kind="folder", path=str(tmp_path)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_hidden_layers": "six"}, "expected int, got str"),
        ({"hidden_size": 130, "num_attention_heads": 12}, "130.* is not a multiple"),
        ({"hidden_act": "gelo"}, "gelo"),
        ({"num_attention_heads": 0}, "zero"),
    ],
)
@pytest.mark.parametrize("own", [True, False])
def test_fields_that_make_no_model_are_named(config, message, own):
    teacher = None if own else tiny.language_model()
    with pytest.raises(UserError, match=r"student\.config: no bert can be made") as caught:
        build(teacher=teacher, architecture="bert" if own else None, config=config)
    caught.match(message)


def test_an_architecture_without_such_a_model_is_named():
    with pytest.raises(UserError, match="gpt2 has no masked language model"):
        build(architecture="gpt2")


@pytest.mark.parametrize("init", [{"kind": "random"}, {"kind": "teacher_layers", "layers": "last"}])
@pytest.mark.parametrize("architecture", [None, "bert"])
@pytest.mark.parametrize("head", [None, TaskHead("label", 3)])
def test_a_student_of_a_16_bit_teacher_is_made_in_float32(tmp_path, init, architecture, head):
    made = tiny.language_model("bert", 2)
    save_pretrained(made, tmp_path, {name: p.detach() for name, p in made.named_parameters()})
    teacher = load_pretrained(str(tmp_path), dtype=torch.bfloat16)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 12}
    config = {"num_hidden_layers": 1, **({} if architecture is None else sizes)}
    student = HFStudent(kind="hf", architecture=architecture, config=config, init=init)
    made = student.build(teacher, 61, False, 0, head=head)
    for model in (made, student.empty(teacher.to("meta"), 61, False, head=head)):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert model.hf.config.dtype == torch.float32
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    assert teacher.hf.config.dtype == torch.bfloat16


@pytest.mark.parametrize("config", [{}, {"num_hidden_layers": 1}])
@pytest.mark.parametrize("head", [None, TaskHead("label", 3)])
def test_a_student_of_a_16_bit_folder_is_made_in_float32(tmp_path, config, head):
    made = tiny.language_model("bert", 2)
    save_pretrained(made, tmp_path, {name: p.detach().bfloat16() for name, p in made.named_parameters()})
    init = Folder(kind="folder", path=str(tmp_path), layers="last" if config else None)
    student = HFStudent(kind="hf", config=config, init=init)
    for model in (student.build(None, 61, False, 0, head=head), student.empty(None, 61, False, head=head)):
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        assert model.hf.config.dtype == torch.float32
