"""Students that start from their teacher's layers."""

import pytest
import torch

from megadistill.core.errors import UserError
from megadistill.models.initialize import copy_teacher_layers
from megadistill.testing import tiny


def embedding_output(model, batch):
    return model.hf.base_model.embeddings(batch.ids)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_every_weight_comes_from_the_named_layer(architecture):
    teacher, student = (
        tiny.language_model(architecture, 4, seed=1),
        tiny.language_model(architecture, 2, seed=2),
    )
    copied = copy_teacher_layers(student.hf, teacher.hf, [3, 0])
    assert copied == sum(v.numel() for v in student.hf.state_dict().values())
    stack = {"bert": "bert.encoder.layer", "gpt2": "transformer.h"}[architecture]
    ours, theirs = student.hf.state_dict(), teacher.hf.state_dict()
    for name, value in ours.items():
        source = name.replace(f"{stack}.0.", f"{stack}.3!").replace(f"{stack}.1.", f"{stack}.0.").replace("!", ".")
        assert torch.equal(value, theirs[source]), name


def test_all_layers_in_order_answer_as_the_teacher_does():
    teacher, student = tiny.language_model("bert", 3, seed=1), tiny.language_model("bert", 3, seed=2)
    copy_teacher_layers(student.hf, teacher.hf, [0, 1, 2])
    batch = tiny.batch(4)
    ours, theirs = (m.eval().signals(batch, frozenset({-1})).hidden[-1] for m in (student, teacher))
    assert torch.equal(ours, theirs)


def test_a_distilbert_student_sees_exactly_its_bert_teachers_embeddings():
    """DistilBERT has no token types: the teacher's type 0 is folded into the positions, not dropped."""
    teacher, student = (
        tiny.language_model("bert", 2, seed=1).eval(),
        tiny.language_model("distilbert", 2, seed=2).eval(),
    )
    copy_teacher_layers(student.hf, teacher.hf, [0, 1])
    batch = tiny.batch(4, ragged=False)
    torch.testing.assert_close(embedding_output(student, batch), embedding_output(teacher, batch))
    ours, theirs = (m.signals(batch, frozenset({-1})) for m in (student, teacher))
    torch.testing.assert_close(ours.hidden[-1], theirs.hidden[-1])
    rows = torch.arange(10)

    def logits(hidden, weight, bias):
        return hidden @ weight.T + bias

    torch.testing.assert_close(ours.head(logits, rows), theirs.head(logits, rows))


@pytest.mark.parametrize(
    ("layers", "message"), [([0], "1 entries for 2 student layers"), ([0, 7], r"layer\(s\) \[7\].*0 to 2")]
)
def test_layers_that_do_not_fit_are_refused(layers, message):
    with pytest.raises(UserError, match=message):
        copy_teacher_layers(tiny.language_model("bert", 2).hf, tiny.language_model("bert", 3).hf, layers)


def test_another_width_is_refused_by_name():
    wide = tiny.language_model("bert", 2, hidden_size=32)
    with pytest.raises(UserError, match="word_embeddings"):
        copy_teacher_layers(tiny.language_model("bert", 2).hf, wide.hf, [0, 1])
