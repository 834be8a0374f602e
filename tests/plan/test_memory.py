"""Is the planned peak of memory the allocator's? Nothing in the plan is fitted to these configurations."""

import json
from itertools import product
from pathlib import Path

import pytest

from megadistill.testing import planned
from megadistill.testing.processes import run

WORKER = str(Path(__file__).with_name("memory_worker.py"))
RANKS = 2
SPECS = [
    {"layers": layers, "hidden": hidden, "micro": micro, "stage": stage, "precision": "fp32", "accumulation": 1}
    for (layers, hidden, micro), stage in product([(2, 128, 8), (3, 384, 4)], range(4))
] + [
    {"layers": 2, "hidden": 256, "micro": 4, "stage": stage, "precision": "bf16", "accumulation": 2}
    for stage in (1, 2, 3)
]
OF_TASKS = [
    {"layers": 2, "hidden": 128, "micro": micro, "stage": stage, "precision": "fp32", "accumulation": 1, "task": task}
    for task, micro, stage in (("label", 8, 1), ("choice", 2, 2), ("image", 8, 1))
]
SPECS += OF_TASKS


def planned_peak(spec):
    return planned.peak(spec, RANKS, on_gpu=False)


@pytest.fixture(scope="module")
def allocated():
    output = run([WORKER, json.dumps(SPECS)], RANKS, timeout=900)[0]
    return [int(line) for line in output.splitlines() if line.isdigit()]


@pytest.mark.soak
@pytest.mark.parametrize("number", range(len(SPECS)), ids=[" ".join(map(str, s.values())) for s in SPECS])
def test_the_planned_peak_is_within_15_percent_of_the_allocators(allocated, number):
    print(f"{planned_peak(SPECS[number]) / allocated[number] - 1:+.1%} of {allocated[number] / 2**20:.1f} MiB")
    assert planned_peak(SPECS[number]) == pytest.approx(allocated[number], rel=0.15)


def test_more_is_planned_for_larger_batches_and_less_for_shares():
    spec = SPECS[4]
    assert planned_peak(spec | {"micro": 8}) > 1.2 * planned_peak(spec)
    assert planned_peak(spec | {"stage": 2}) < planned_peak(spec)
