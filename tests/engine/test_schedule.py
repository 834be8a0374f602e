"""The learning rate at each step, against what the published schedules give."""

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from megadistill.engine.schedule import ScheduleConfig, factor
from megadistill.run.config import check

THEIRS = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}


@pytest.mark.parametrize("kind", THEIRS)
def test_decays_are_the_usual_ones(kind):
    """transformers' warm-up begins at 0, so that its first step changes nothing; ours is one step ahead there."""
    steps, warmup = 40, 10
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = THEIRS[kind](optimizer, warmup, steps)
    rates = []
    for _ in range(steps):
        rates.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    ours = [factor(ScheduleConfig(kind=kind, warmup_fraction=warmup / steps), n, steps) for n in range(1, steps + 1)]
    assert ours[:warmup] == pytest.approx([*rates[1:warmup], 1.0])
    assert ours[warmup:] == pytest.approx(rates[warmup:])


def test_wsd_is_stable_until_its_decay():
    config = ScheduleConfig(kind="wsd", warmup_fraction=0.1, decay_fraction=0.2, floor=0.1)
    rates = [factor(config, step, 100) for step in range(1, 121)]
    assert rates[9:81] == [1.0] * 72
    assert rates[81] < 1
    assert rates[100:] == [pytest.approx(0.1)] * 20


def test_added_steps_warm_up_and_decay_anew():
    tree = {
        "name": "x",
        "data": {
            "dir": "prepared",
            "corpora": [{"kind": "prose"}],
            "tokenizer": "somewhere",
            "sequence_length": 8,
            "targets": {"kind": "mlm"},
        },
        "student": {"kind": "hf", "config": {"model_type": "bert"}},
        "objectives": [{"kind": "hard_ce"}],
        "batch": {"global_size": 1, "micro_size": 1},
        "schedule": {"warmup_fraction": 0.1},
        "train": {"steps": 20},
    }
    plain = check(tree, "here")
    longer = check({**tree, "train": {"steps": 20, "more_steps": [10, 30]}}, "here")
    assert (plain.steps, longer.steps) == (20, 60)
    leg = lambda steps: [factor(plain.schedule, step, steps) for step in range(1, steps + 1)]  # noqa: E731
    found = [longer.learning_rate_factor(step) for step in range(1, 61)]
    assert found == leg(20) + leg(10) + leg(30)
    assert found[:20] == [plain.learning_rate_factor(step) for step in range(1, 21)]
