"""What a student's config may say, and what is said of what it may not."""

import pytest

from megadistill.core.errors import UserError
from megadistill.models.initialize import Folder
from megadistill.models.students.hf import HFStudent
from megadistill.testing import tiny


def build(causal=False, teacher=None, **fields):
    return HFStudent(kind="hf", **fields).build(teacher, 61, causal, seed=0)


def test_config_beside_a_folder_is_refused_not_ignored(tmp_path):
    with pytest.raises(UserError, match=r"student\.config is set"):
        build(config={"num_hidden_layers": 1}, init=Folder(kind="folder", path=str(tmp_path)))


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
