"""Students that start from their teacher's layers."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from megadistill.core.errors import UserError
from megadistill.models.initialize import chosen_layers, copy_teacher_layers
from megadistill.models.interventions import layer_modules
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
    torch.testing.assert_close(embedding_output(student, batch), embedding_output(teacher, batch), atol=1e-6, rtol=0)
    ours, theirs = (m.signals(batch, frozenset({-1})) for m in (student, teacher))
    torch.testing.assert_close(ours.hidden[-1], theirs.hidden[-1])
    rows = torch.arange(10)

    def logits(hidden, weight, bias):
        return hidden @ weight.T + bias

    torch.testing.assert_close(ours.head(logits, rows), theirs.head(logits, rows))


@pytest.mark.parametrize(
    ("choice", "depth", "available", "expected"),
    [
        ("uniform", 6, 12, [0, 2, 4, 7, 9, 11]),  # DistilBERT's
        ("uniform", 4, 12, [0, 4, 7, 11]),
        ("uniform", 12, 12, list(range(12))),
        ("uniform", 1, 12, [0]),
        ("first", 6, 12, [0, 1, 2, 3, 4, 5]),  # Patient-KD's
        ("last", 3, 12, [9, 10, 11]),
        ([5, 5], 2, 12, [5, 5]),
    ],
)
def test_layers_by_name(choice, depth, available, expected):
    assert chosen_layers(choice, depth, available) == expected


def test_a_deeper_student_needs_its_layers_named():
    with pytest.raises(UserError, match="2 layers for the student's 4"):
        copy_teacher_layers(tiny.language_model("bert", 4).hf, tiny.language_model("bert", 2).hf, "uniform")


@pytest.mark.parametrize("architecture", tiny.FAMILIES)
def test_every_family_starts_from_chosen_layers(architecture):
    """All layers in order answer as the teacher does; half of them as its embeddings do."""
    depth = 4
    teacher = tiny.language_model(architecture, depth, seed=1).eval()
    batch = tiny.batch(4)
    theirs = teacher.signals(batch, frozenset({0, -1})).hidden
    for layers in (depth, depth // 2):
        student = tiny.language_model(architecture, layers, seed=2).eval()
        choice = [0, 1] if architecture == "modernbert" and layers == 2 else "uniform"
        copied = copy_teacher_layers(student.hf, teacher.hf, choice)
        assert copied == sum(v.numel() for v in student.hf.state_dict().values())
        ours = student.signals(batch, frozenset({0, -1})).hidden
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[-1], theirs[-1]) == (layers == depth)


def test_layers_are_not_put_where_another_kind_of_attention_is():
    teacher, student = tiny.language_model("modernbert", 4), tiny.language_model("modernbert", 2)
    with pytest.raises(UserError, match="another kind of attention") as caught:
        copy_teacher_layers(student.hf, teacher.hf, [1, 2])
    assert "student.config.layer_types: ['sliding_attention', 'full_attention']" in caught.value.fix


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


CAUSAL_STACKS = {
    "mpt": {"d_model": 16, "n_heads": 2, "max_seq_len": 12},  # transformer.blocks.3
    "gpt_neox": {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32},
    "opt": {"hidden_size": 16, "word_embed_proj_dim": 16, "num_attention_heads": 2},
}


@pytest.mark.parametrize("architecture", CAUSAL_STACKS)
@pytest.mark.parametrize("choice", ["first", "last", "uniform", [2, 1]])
def test_layers_are_known_by_the_names_of_their_stack(architecture, choice):
    teacher, student = (
        AutoModelForCausalLM.from_config(
            AutoConfig.for_model(architecture, vocab_size=61, num_hidden_layers=depth, **CAUSAL_STACKS[architecture])
        )
        for depth in (4, 2)
    )
    copy_teacher_layers(student, teacher, choice)
    for ours, layer in zip(layer_modules(student), chosen_layers(choice, 2, 4), strict=True):
        theirs = layer_modules(teacher)[layer].state_dict()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())


def test_layers_of_a_stack_with_other_names_are_not_chosen():
    """XLM keeps the parts of its layers in a list each: attentions.3, ffns.3."""
    teacher, student = (
        AutoModelForMaskedLM.from_config(
            AutoConfig.for_model("xlm", vocab_size=61, n_words=61, emb_dim=16, n_layers=layers, n_heads=2)
        )
        for layers in (4, 2)
    )
    for choice in ("uniform", [1, 0]):
        with pytest.raises(UserError, match=r"cannot be chosen of a xlm") as caught:
            copy_teacher_layers(student, teacher, choice)
        assert "student.init.layers: first" in caught.value.fix
    copy_teacher_layers(student, teacher, "first")
    assert torch.equal(student.transformer.ffns[1].lin1.weight, teacher.transformer.ffns[1].lin1.weight)
