"""What an objective says when the models, or its own fields, cannot do what it asks."""

import re

import pytest
from pydantic import ValidationError

from megadistill.core.errors import UserError
from megadistill.core.types import Dims
from megadistill.objectives.attention_mse import AttentionMSE
from megadistill.objectives.attention_relation import AttentionRelation
from megadistill.objectives.base import build_loss
from megadistill.objectives.cosine import Cosine
from megadistill.objectives.hidden_mse import HiddenMSE
from megadistill.objectives.layer_maps import layer_map
from megadistill.objectives.pkd import PKD
from megadistill.objectives.soft_ce import SoftCE

SIX, TWELVE = (Dims(layers, 768, 30522, 12, queries=768, keys=768) for layers in (6, 12))
SMALL = Dims(4, 312, 30522, 12, queries=312, keys=312)
GROUPED = Dims(4, 48, 30522, 6, queries=96, keys=32)


def relation_heads(heads, *relations):
    return AttentionRelation(kind="attention_relation", relations=relations, heads=heads)


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "expected"),
    [
        ("uniform", 4, 12, {1: 3, 2: 6, 3: 9, 4: 12}),
        ("uniform", 6, 12, {1: 2, 2: 4, 3: 6, 4: 8, 5: 10, 6: 12}),
        ("top", 4, 12, {1: 9, 2: 10, 3: 11, 4: 12}),
        ("bottom", 4, 12, {1: 1, 2: 2, 3: 3, 4: 4}),
        ("last", 4, 12, {4: 12}),
        ({2: 7, 0: 0}, 4, 12, {0: 0, 2: 7}),
    ],
)
def test_layer_maps(name, ours, theirs, expected):
    result = layer_map(name, Dims(ours, 1, 1), Dims(theirs, 1, 1))
    assert list(result.items()) == list(expected.items())


@pytest.mark.parametrize("weights", [[0, 0], [-1, 2], [float("inf")], []])
@pytest.mark.parametrize(
    ("objective", "field"),
    [
        (Cosine, "layer_weights"),
        (HiddenMSE, "layer_weights"),
        (PKD, "layer_weights"),
        (AttentionMSE, "layer_weights"),
        (AttentionRelation, "relation_weights"),
    ],
)
def test_weights_that_weigh_nothing(objective, field, weights):
    kind = objective.model_fields["kind"].annotation.__args__[0]
    with pytest.raises(ValidationError, match=field):
        objective.model_validate({"kind": kind, field: weights})


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0, -1.0])
def test_a_temperature_that_is_none(value):
    with pytest.raises(ValidationError, match="temperature"):
        SoftCE(kind="soft_ce", temperature=value)


@pytest.mark.parametrize(
    ("objective", "student", "teacher", "message"),
    [
        (
            HiddenMSE(kind="hidden_mse"),
            Dims(5, 768, 1),
            TWELVE,
            r"objectives\.3\.layers \(hidden_mse\): .*12 layers.*student's 5",
        ),
        (HiddenMSE(kind="hidden_mse"), TWELVE, SIX, "teacher has 6 layers for the student's 12"),
        (HiddenMSE(kind="hidden_mse", layers={7: 1}), SIX, TWELVE, "no student layer 7"),
        (HiddenMSE(kind="hidden_mse", layers={1: 13, 2: 14}), SIX, TWELVE, "no teacher layer 13, no teacher layer 14"),
        (HiddenMSE(kind="hidden_mse", layers={}), SIX, TWELVE, "it names none"),
        (HiddenMSE(kind="hidden_mse", layer_weights=[1, 2]), SIX, TWELVE, "2 weights for 6 pairs"),
        (HiddenMSE(kind="hidden_mse", projection="none"), SMALL, TWELVE, "768 values, the student's 312"),
        (Cosine(kind="cosine"), SMALL, TWELVE, "the teacher has 768, the student 312 values"),
        (PKD(kind="pkd"), SMALL, TWELVE, "768 values, the student's 312"),
        (PKD(kind="pkd"), Dims(1, 768, 1), TWELVE, "leaves nothing of a student of one layer"),
        (AttentionMSE(kind="attention_mse"), Dims(4, 312, 1, 6), TWELVE, "12 attention heads a layer, the student 6"),
        (AttentionMSE(kind="attention_mse", layers={0: 0}), SIX, TWELVE, r"embeddings \(0\) attend to nothing"),
        (
            AttentionMSE(kind="attention_mse", form="gram"),
            Dims(6, 768, 1, 12, full_attention=False),
            TWELVE,
            "does not see all of them",
        ),
        (AttentionRelation(kind="attention_relation"), Dims(6, 768, 1, 8), TWELVE, "set `heads`"),
        (AttentionRelation(kind="attention_relation", heads=48), SMALL, TWELVE, "48 does not divide.*312"),
        (
            AttentionRelation(kind="attention_relation", relations=["qq", "kk"], heads=12),
            GROUPED,
            TWELVE,
            "keys have 32",
        ),
        (
            AttentionRelation(kind="attention_relation", relations=["qk", "vv"], heads=3),
            GROUPED,
            TWELVE,
            "values have 32",
        ),
        (relation_heads(64, "qq"), GROUPED, TWELVE, "a divisor of 96"),
        (relation_heads(64, "vv"), TWELVE, GROUPED, "a divisor of 32"),
        (AttentionRelation(kind="attention_relation", teacher_layer=13), SIX, TWELVE, "no layer 13"),
        (AttentionRelation(kind="attention_relation", student_layer=0), SIX, TWELVE, "no layer 0"),
        (
            AttentionRelation(kind="attention_relation", relation_weights=[1.0]),
            SIX,
            TWELVE,
            "1 for 2 relations",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_its_field(objective, student, teacher, message):
    with pytest.raises(UserError, match=rf"(?s){message}") as caught:
        build_loss(objective, 3, student, teacher)
    assert re.match(rf"objectives\.3[\w.]* \({objective.kind}\): ", str(caught.value))
    assert caught.value.fix


@pytest.mark.parametrize(
    ("objective", "fields"),
    [
        (HiddenMSE, {"layers": "unifrom"}),
        (HiddenMSE, {"layer_weights": []}),
        (AttentionRelation, {"relations": []}),
        (AttentionRelation, {"relations": ["qv"]}),
        (AttentionRelation, {"heads": 0}),
        (PKD, {"weight": -1}),
    ],
)
def test_fields_that_mean_nothing_are_refused(objective, fields):
    kind = objective.model_fields["kind"].annotation.__args__[0]
    with pytest.raises(ValidationError):
        objective(kind=kind, **fields)
