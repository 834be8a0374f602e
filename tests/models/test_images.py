"""Image classifiers as signal sources: any architecture's head, two heads, and what each model sees."""

from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageClassification, DeiTImageProcessorPil, ViTImageProcessorPil
from transformers.models.mobilevit.image_processing_pil_mobilevit import MobileViTImageProcessorPil

from megadistill.core.errors import UserError
from megadistill.core.types import Needs
from megadistill.models.heads import TaskHead
from megadistill.models.images import ImageModel, default_processor, refuse_misfits, view_of
from megadistill.models.loading import load_for_task, load_pretrained, save_pretrained
from megadistill.models.scoring import outputs, score_rows
from megadistill.models.students.hf import HFStudent
from megadistill.run.build import show_images
from megadistill.teachers.online import OnlineTeacher, sha256_of
from megadistill.testing import tiny

SIZE, CLASSES = 32, 7
TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TRANSFORMER |= {"image_size": SIZE, "patch_size": 8, "initializer_range": 0.2}
SMALL = {
    "deit": TRANSFORMER,
    "vit": TRANSFORMER,
    "beit": TRANSFORMER,
    "dinov2": TRANSFORMER,
    "convnext": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "groups_width": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "image_size": SIZE, "window_size": 4},
    "mobilenet_v2": {"depth_multiplier": 0.1},
}


def made(architecture, seed=0, processor=None, **fields):
    fields = {"architectures": ["DeiTForImageClassification"], **fields} if architecture == "deit" else fields
    config = AutoConfig.for_model(architecture, num_labels=CLASSES, **SMALL[architecture], **fields)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        hf = AutoModelForImageClassification.from_config(config)
    return ImageModel(hf, processor or default_processor(SIZE)).eval()


def two_headed(seed=0):
    return made("deit", seed, architectures=["DeiTForImageClassificationWithTeacher"])


def plain(hidden, weight, bias):
    return torch.nn.functional.linear(hidden, weight, bias)


@pytest.mark.parametrize("architecture", SMALL)
@torch.no_grad()
def test_the_head_of_any_classifier_gives_its_own_logits(architecture):
    model, batch = made(architecture), tiny.images(5, SIZE, CLASSES)
    model.check_head()
    theirs = model.hf(pixel_values=model.view(batch.pixels)).logits
    signals = model.signals(batch, frozenset({-1}))
    assert torch.allclose(signals.head(plain, batch.targets), theirs, atol=1e-6)
    some = torch.tensor([3, 1])
    assert torch.allclose(signals.head(plain, some), theirs[some], atol=1e-6)
    assert signals.hidden[-1].shape == (5, 1, model.dims.hidden)
    assert model.dims.vocabulary == CLASSES
    assert not signals.heads
    assert not [hook for part in model.modules() for hook in part._forward_pre_hooks]


@torch.no_grad()
def test_a_distillation_token_answers_apart_and_both_together_by_the_mean_of_their_softmax():
    model, batch = two_headed(), tiny.images(5, SIZE, CLASSES)
    model.check_head()
    theirs = model.hf(pixel_values=model.view(batch.pixels))
    signals = model.signals(batch, frozenset())
    assert torch.allclose(signals.of("class").head(plain, batch.targets), theirs.cls_logits, atol=1e-6)
    assert torch.allclose(signals.of("distillation").head(plain, batch.targets), theirs.distillation_logits, atol=1e-6)
    assert torch.allclose(signals.head(plain, batch.targets), theirs.logits, atol=1e-6)
    mean = (theirs.cls_logits.softmax(-1) + theirs.distillation_logits.softmax(-1)) / 2
    assert torch.allclose(outputs(signals, batch).exp(), mean, atol=1e-6)
    assert not torch.allclose(mean, theirs.logits.softmax(-1), atol=1e-3)
    truth = batch.labels.flatten()
    scores = score_rows(signals, None, batch)
    assert torch.allclose(scores.nll, -mean.log()[torch.arange(5), truth].double(), atol=1e-6)
    assert scores.correct.sum() == (mean.argmax(-1) == truth).sum()


PROCESSORS = [
    default_processor(SIZE),
    DeiTImageProcessorPil(size={"height": 36, "width": 36}, crop_size={"height": SIZE, "width": SIZE}),
    ViTImageProcessorPil(size={"height": SIZE, "width": SIZE}, do_normalize=False),
    MobileViTImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": SIZE, "width": SIZE}),  # blue first
]


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda one: type(one).__name__)
def test_a_view_is_what_the_processor_does(processor):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    options = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
    theirs = processor(image, **options)["pixel_values"]
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy()).unsqueeze(0)
    assert torch.allclose(view_of(processor, "")(pixels), theirs, atol=1e-5)


def test_a_model_of_another_size_sees_the_same_picture():
    pixels = tiny.images(2, SIZE, CLASSES).pixels
    flat = pixels.float().mean((2, 3), keepdim=True).round().to(torch.uint8).expand(-1, -1, SIZE, SIZE)
    large = view_of(default_processor(48), "")
    assert large(pixels).shape == (2, 3, 48, 48)
    small = view_of(default_processor(SIZE), "")
    assert torch.allclose(large(flat)[:, :, 0, 0], small(flat)[:, :, 0, 0], atol=1e-5)


def test_a_teacher_sees_the_students_images_in_its_own_size_or_as_the_student_where_it_has_none(tmp_path, caplog):
    student, teacher = (
        made("vit"),
        made("regnet", processor=DeiTImageProcessorPil(crop_size={"height": 48, "width": 48})),
    )
    path = saved(teacher, tmp_path / "regnet")
    batch = tiny.images(3, SIZE, CLASSES)

    def answer(source):
        show_images(head(), student, source.models)
        return source.signals(batch, Needs(teacher=True)).head(plain, batch.targets)

    online = OnlineTeacher(kind="online", path=path)
    with torch.no_grad():
        own = teacher.hf(pixel_values=teacher.view(batch.pixels)).logits
        theirs = teacher.hf(pixel_values=student.view(batch.pixels)).logits
    assert teacher.view.size == 48
    assert torch.allclose(answer(online.build(tiny.CPU)), own, atol=1e-5)
    (tmp_path / "regnet" / "preprocessor_config.json").unlink()
    with caplog.at_level("WARNING"):
        assert torch.allclose(answer(online.build(tiny.CPU)), theirs, atol=1e-5)
    assert "has no preprocessor_config.json: it is shown what the student sees" in caplog.text


@pytest.mark.parametrize("architecture", SMALL)
def test_every_weight_and_statistic_of_a_teacher_is_in_its_identity(architecture, tmp_path):
    """Of RegNet and ResNet also how many batches their norms have counted, a number without any axis."""
    path = saved(made(architecture), tmp_path / architecture)
    source = OnlineTeacher(kind="online", path=path).build(tiny.CPU)
    before = sha256_of(source.model)
    assert source.identity() == {"kind": "online", "path": path, "sha256": before}
    for value in source.model.state_dict().values():
        value += 1
        assert sha256_of(source.model) != before
        value -= 1


def test_the_order_that_weights_lie_in_memory_does_not_change_their_hash():
    weights = torch.arange(6.0).reshape(2, 3)
    plain, turned = torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(3, 2, bias=False)
    plain.weight.data, turned.weight.data = weights, weights.T.contiguous().T
    assert sha256_of(plain) == sha256_of(turned)
    assert sha256_of(plain) == sha256(b"weight" + weights.numpy().tobytes()).hexdigest()


def head(size=SIZE, names=tuple("abcdefg")):
    return TaskHead("image", CLASSES, names, default_processor(size), size)


def saved(model, folder):
    save_pretrained(model, folder, {name: value.detach() for name, value in model.named_parameters()})
    return str(folder)


def test_a_saved_model_comes_back_with_its_heads_and_its_processor(tmp_path):
    model = two_headed()
    path = saved(model, tmp_path / "deit")
    again = load_pretrained(path)
    assert again.view == model.view
    assert type(again.hf).__name__ == "DeiTForImageClassificationWithTeacher"
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert len(load_for_task(path, head(), 0).signals(tiny.images(2, SIZE, CLASSES), frozenset()).heads) == 2
    (tmp_path / "deit" / "preprocessor_config.json").unlink()
    assert load_pretrained(path).view is None


def test_a_student_of_another_resolution_is_refused(tmp_path):
    path = saved(two_headed(), tmp_path / "deit")
    fewer = HFStudent(kind="hf", architecture="deit", config=TRANSFORMER, init={"kind": "folder", "path": path})
    assert isinstance(fewer.build(None, 0, False, 0, {}, head()), ImageModel)
    for start in (lambda: load_for_task(path, head(48), 0), lambda: fewer.build(None, 0, False, 0, {}, head(48))):
        with pytest.raises(UserError, match=f"set task.processor: {path}"):
            start()
    (tmp_path / "deit" / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match="cannot read images of 48 x 48 pixels"):
        load_for_task(path, head(48), 0).check_head()


def test_deit_from_scratch_has_a_distillation_token_and_the_tasks_size():
    student = HFStudent(
        kind="hf", architecture="deit", config={k: v for k, v in TRANSFORMER.items() if k != "image_size"}
    )
    model = student.build(None, 0, False, 0, {}, head())
    model.check_head()
    assert model.hf.config.image_size == SIZE
    assert model.hf.config.id2label[2] == "c"
    assert not hasattr(model.hf.config, "vocab_size")
    assert type(model.hf).__name__.endswith("WithTeacher")


def test_layers_are_taken_of_a_teacher_that_is_a_stack_of_them():
    init = {"kind": "teacher_layers", "layers": [1]}
    student = HFStudent(kind="hf", config={"num_hidden_layers": 1}, init=init)
    teacher = two_headed()
    model = student.build(teacher, 0, False, 0, {}, head())
    name = "layers.{}.attention.q_proj.weight"
    theirs = {key: value for key, value in teacher.hf.state_dict().items() if key.endswith(name.format(1))}
    ours = [value for key, value in model.hf.state_dict().items() if key.endswith(name.format(0))]
    assert len(theirs) == len(ours) == 1
    assert torch.equal(ours[0], next(iter(theirs.values())))
    with pytest.raises(UserError, match="RegNetForImageClassification is no stack of equal ones"):
        HFStudent(kind="hf", init=init, architecture="deit").build(made("regnet"), 0, False, 0, {}, head())


def test_what_cannot_be_split_and_classes_in_another_order_are_refused():
    with pytest.raises(UserError, match="normalises over a micro-batch"):
        refuse_misfits(made("resnet"), [], "abcdefg")
    names = [f"LABEL_{number}" for number in range(CLASSES)]
    refuse_misfits(made("vit"), [made("regnet")], names)
    refuse_misfits(made("vit"), [made("regnet")], "abcdefg")  # nothing can be compared
    with pytest.raises(UserError, match=r"class 0 is 'LABEL_0' to it, and 'LABEL_6' in the task"):
        refuse_misfits(made("vit"), [made("regnet")], names[::-1])
