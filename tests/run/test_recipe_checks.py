"""Mistakes that cross the sections of a recipe are told when its file is read."""

import re
from pathlib import Path

import pytest

from megadistill.core.errors import UserError
from megadistill.run.config import load
from megadistill.run.cross import oddities

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize(
    ("preset", "assignment", "message"),
    [
        ("causal_distilbert", "batch.micro_size=1", "micro_size is 1"),
        ("co_distillation", "objectives.1.ramp=null", "not there until step 1000"),
        ("co_distillation", "objectives.1.ramp.from_step=500", "not there until step 1000"),
        ("hinton", "objectives=[{kind: hard_ce, weight: 0}]", "all weights are 0"),
        ("hinton", "objectives.0.temperature=0", r"objectives\.0\.temperature \(soft_ce\)"),
        (
            "tinybert4_general",
            "objectives.0.layers=unifrom",
            r"objectives\.0\.layers \(attention_mse\).*did you mean 'uniform'",
        ),
        ("ensemble", "teacher.weights=[1]", "give one each"),
        ("ensemble", "objectives=[{kind: counterfactual}]", "different states"),
        ("self_distillation", "objectives.1.ramp.to_step=500", "must come after from_step"),
        ("hinton", "batch.schedule=[{from_step: 1, global_size: 64}]", "batch.schedule.0.from_step"),
        (
            "hinton",
            "batch.schedule=[{from_step: 9, global_size: 64}, {from_step: 9, global_size: 32}]",
            "must be larger than the one before",
        ),
        ("hinton", "batch.global_size=34", "batch.global_size: 34 does not divide by batch.micro_size"),
        ("hinton", "schedule={kind: linear, warmup_fraction: 1}", "schedule.warmup_fraction: 1 leaves 0 of the steps"),
        ("hinton", "schedule={kind: wsd, warmup_fraction: 0.9}", r"schedule.warmup_fraction: 0\.9 leaves 0\.1"),
        ("self_distillation", "engine.zero_stage=3", "engine.zero_stage: teacher .self_ema. reads the student's whole"),
        ("co_distillation", "checkpoint.every_steps=300", "checkpoint: teacher .peer. needs every 500th step's"),
        ("co_distillation", "checkpoint.keep_every_steps=null", "set checkpoint.every_steps and checkpoint.keep_every"),
        ("causal_distilbert", "engine.activation_checkpointing=true", "what is recomputed would not be what was"),
        ("hinton", "teacher.path=[1]", r"teacher\.path \(online\): Input should be a valid string"),
        ("hinton", "teacher.pth=x", r"teacher\.pth \(online\): unknown key; did you mean 'path'"),
        ("ensemble", "teacher.members.0.pth=x", r"teacher\.members\.0\.pth \(ensemble\): unknown key; did you mean"),
        (
            "hinton",
            "batch.micro_size=atuo",
            "batch.micro_size: Input should be 'auto'; did you mean 'auto'. .got 'atuo'",
        ),
        ("hinton", "batch.micro_size=0", "greater than 0 or Input should be 'auto' .got 0."),
        ("hinton", "engine={zero_stage: 0, offload_optimizer: cpu, precision: bf16}", "engine.offload_optimizer: it"),
        ("hinton", "engine={zero_stage: 0, offload_optimizer: cpu, precision: bf16}", "engine.gradient_accumulation"),
        (
            "minilm_l6_h384",
            "teacher=null",
            r"objectives\.0 \(attention\): it learns from a teacher(.|\n)*objectives\.1 \(values\): it learns",
        ),
    ],
)
def test_it_is_told_with_its_field(preset, assignment, message):
    with pytest.raises(UserError, match=message):
        load(CONFIGS / f"{preset}.yaml", [assignment])


def test_every_size_of_the_batch_divides_over_the_ranks():
    batch = load(CONFIGS / "quickstart.yaml", ["batch={global_size: 16, micro_size: 4}"]).batch
    assert batch.accumulation(2) == 2
    grows = load(
        CONFIGS / "quickstart.yaml",
        [
            "batch={global_size: 16, micro_size: 4, schedule: "
            "[{from_step: 5, global_size: 24}, {from_step: 9, global_size: 36}]}"
        ],
    )
    with pytest.raises(UserError, match=r"batch.schedule.1.global_size: 36 does not divide(.|\n)*: 32 or 40"):
        grows.batch.accumulation(2)
    assert grows.batch.later_sizes == [(4, 24), (8, 36)]


def test_a_ramp_moves_linearly_between_its_steps():
    soft = load(CONFIGS / "co_distillation.yaml").objectives[1]
    assert [soft.weight_at(step) for step in (1, 1000, 1500, 2000, 9999)] == [0, 0, 0.5, 1, 1]


def test_clashes_of_several_sections_are_told_at_once():
    with pytest.raises(UserError) as caught:
        load(
            CONFIGS / "causal_distilbert.yaml",
            [
                "engine.activation_checkpointing=true",
                "batch.micro_size=1",
                "objectives=[{kind: counterfactual}, {kind: value_mse}, {kind: soft_ce}, {kind: soft_ce}]",
                "teacher=null",
            ],
        )
    lines = str(caught.value).splitlines()
    assert "7 problem(s)" in lines[0]
    assert all(re.match(r"  objectives\.\d", line) for line in lines[1:]), lines


@pytest.mark.parametrize(
    ("assignments", "remark"),
    [
        (
            ["objectives.0.ramp={from_step: 30, to_step: 40}"],
            "objectives.0 (soft_ce): its weight is 0 at each of the 20",
        ),
        (["batch.schedule=[{from_step: 21, global_size: 32}]"], "batch.schedule.0.from_step: 21 never comes"),
        (["schedule.total_steps=5"], "schedule.total_steps: the learning rate is 0 in the last 15 steps"),
        (["checkpoint.keep_best=true", "evaluate.every_steps=null"], "checkpoint.keep_best: only the last step"),
    ],
)
def test_what_is_hardly_meant_is_said(assignments, remark):
    config = load(CONFIGS / "quickstart.yaml", ["train.steps=20", *assignments])
    assert any(said.startswith(remark) for said in oddities(config)), list(oddities(config))
