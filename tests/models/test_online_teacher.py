"""How a teacher's weights are kept, how it attends, and what that rules out."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from megadistill.core.errors import UserError
from megadistill.core.types import Needs
from megadistill.models.loading import save_pretrained
from megadistill.teachers.cached import CachedTeacher
from megadistill.teachers.ensemble import EnsembleTeacher
from megadistill.teachers.online import OnlineTeacher
from megadistill.testing import tiny

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path):
    model = tiny.language_model("bert", 2, seed=1)
    save_pretrained(model, tmp_path / "teacher", {name: p.detach() for name, p in model.named_parameters()})
    return str(tmp_path / "teacher")


@pytest.mark.parametrize(
    ("device", "native", "asked", "dtype"),
    [
        ("cpu", False, "auto", torch.float32),
        ("cuda", True, "auto", torch.bfloat16),
        ("cuda", False, "auto", torch.float16),
        ("cuda", True, "float16", torch.float16),
        ("cuda", False, "bfloat16", torch.bfloat16),
    ],
)
def test_dtype(device, native, asked, dtype, monkeypatch):
    def supported(including_emulation=True):
        return native or including_emulation  # what torch says of a GPU before Ampere

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert OnlineTeacher(kind="online", path="x", dtype=asked).torch_dtype(torch.device(device)) is dtype


def test_plain_attention_gives_the_same_answer(folder):
    batch, needs = tiny.batch(3), Needs(teacher=True, teacher_hidden=frozenset({1, -1}))
    answers = []
    for attention in ("sdpa", "eager"):
        source = OnlineTeacher(kind="online", path=folder, attention=attention).build(CPU)
        assert source.model.hf.config._attn_implementation == attention
        answers.append(source.signals(batch, needs).hidden)
    for layer, states in answers[0].items():
        torch.testing.assert_close(answers[1][layer][batch.mask], states[batch.mask], rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_attention_of_a_package_that_is_not_here_is_one_error(folder):
    with pytest.raises(UserError, match=r"flash.?attn|[Ff]lash"):
        OnlineTeacher(kind="online", path=folder, attention="flash_attention_2").build(CPU)


@pytest.mark.parametrize("attention", ["eager", "flash_attention_2"])
def test_what_other_attention_rules_out_is_told(attention):
    teacher, sdpa = (OnlineTeacher(kind="online", path="x", attention=a) for a in (attention, "sdpa"))
    seen, kept_apart = Needs(teacher_attention=frozenset({1})), SimpleNamespace(attention="document")
    assert "set teacher.attention: sdpa" in teacher.cannot(seen)
    assert "documents are kept apart" in teacher.cannot_read(kept_apart)
    assert not teacher.cannot_read(SimpleNamespace(attention="row"))
    ensemble = EnsembleTeacher(kind="ensemble", members=[sdpa, teacher])
    assert ensemble.cannot_read(kept_apart) == teacher.cannot_read(kept_apart)
    assert not ensemble.cannot(seen)  # of the first member
    assert ensemble.model_copy(update={"members": [teacher, sdpa]}).cannot(seen) == teacher.cannot(seen)
    cached = CachedTeacher(kind="cached", dir="x", of=teacher)
    kept_apart.targets = SimpleNamespace(num_drawings=1)
    assert cached.cannot_read(kept_apart) == teacher.cannot_read(kept_apart)
    assert not sdpa.cannot(seen)
    assert not sdpa.cannot_read(kept_apart)


@pytest.mark.parametrize("placement", ["sharded", "offloaded", "own_ranks"])
def test_layers_whose_weights_move_are_not_compiled(placement):
    with pytest.raises(ValidationError, match=r"compile: .*moves its weights"):
        OnlineTeacher(kind="online", path="x", placement=placement, compile=True)
