"""A model's folder comes back as it was written, and a broken one is named in one message."""

import json

import pytest
import torch
from safetensors.torch import load_file

from megadistill.core.errors import UserError
from megadistill.models.loading import load_config, load_pretrained, save_pretrained
from megadistill.testing import tiny


def weights(model):
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.fixture
def folder(tmp_path):
    model = tiny.language_model()
    save_pretrained(model, tmp_path / "model", weights(model))
    return tmp_path / "model"


@pytest.mark.parametrize("content", [lambda whole: whole[: len(whole) // 2], lambda whole: b"garbage" * 99])
def test_a_weights_file_that_is_not_whole(folder, content):
    file = folder / "model.safetensors"
    file.write_bytes(content(file.read_bytes()))
    with pytest.raises(UserError, match="cannot load the model"):
        load_pretrained(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 32}, r"the weights do not have the shapes of its config\.json\n.* is \[.*16.* says \[.*32"),
        ({"num_hidden_layers": "six"}, "cannot load the model.*\n.*num_hidden_layers.*expected int, got str"),
    ],
)
def test_a_config_that_is_not_the_weights(folder, change, message):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=message):
        load_pretrained(str(folder))


@pytest.mark.parametrize("path", ["runs/nothing", "here/nothing", "./nothing", "a/b/c"])
def test_a_missing_local_folder_is_not_looked_for_on_the_hub(path, tmp_path, monkeypatch):
    import transformers

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="no such local folder"):
        load_config(path)


def test_a_hub_name_that_cannot_be_had_is_said_to_be_neither_here_nor_there(monkeypatch):
    import transformers

    def refuse(*arguments, **named):
        raise OSError("We could not connect")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(UserError, match="no such local folder, and not on the hub, or there is no network") as caught:
        load_config("someone/something")
    assert "run `megadistill prepare` where there is network" in caught.value.fix


def test_the_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_pretrained("~/model").dims == tiny.language_model().dims


def test_the_config_says_the_dtype_of_the_stored_weights(tmp_path):
    model = tiny.language_model()
    whole = {name: value.clone() for name, value in weights(model).items()}
    save_pretrained(model.to(torch.bfloat16), tmp_path, whole)
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.float32}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert config["architectures"] == ["BertForMaskedLM"]
