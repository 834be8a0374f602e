"""Options that trade memory or time for one another train the same student."""

import json
from pathlib import Path

import pytest
import torch

from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.testing import processes, workspace

WORKER = str(Path(__file__).with_name("options_worker.py"))
PLAIN = {stage: [f"engine.zero_stage={stage}", "engine.persistence_threshold=0"] for stage in (1, 2, 3)}
OPTIONS = {
    "optimizer in host memory, ZeRO 1": (1, ["engine.offload_optimizer=cpu"]),
    "optimizer in host memory, ZeRO 2": (2, ["engine.offload_optimizer=cpu"]),
    "optimizer and parameters in host memory": (3, ["engine.offload_optimizer=cpu", "engine.offload_parameters=cpu"]),
    "overlapped communication, ZeRO 1": (1, ["engine.overlap_communication=true"]),
    "overlapped communication, ZeRO 2": (2, ["engine.overlap_communication=true"]),
    "overlapped communication, ZeRO 3": (3, ["engine.overlap_communication=true"]),
    "small buckets": (2, ["engine.reduce_bucket_mib=1", "engine.allgather_bucket_mib=1"]),
    "activations computed again, ZeRO 2": (2, ["engine.activation_checkpointing=true"]),
    "activations computed again, ZeRO 3": (3, ["engine.activation_checkpointing=true"]),
}
"""Name -> (ZeRO stage, what is set on top of it)."""
GROWING = [  # an update that is linear in the gradient, and no dropout: micro-batches are then only a way to add up
    "batch.schedule=[{from_step: 2, global_size: 24}]",
    "optimizer={learning_rate: 1.0, eps: 1.0, gradient_clipping: 100.0}",
    "student.config={num_hidden_layers: 1, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}",
]
SPLITS = {
    "growing batch": (1, "batch.micro_size=4"),
    "growing batch, small micro-batches": (1, "batch.micro_size=2"),
    "growing batch, ZeRO 0": (0, "batch.micro_size=4"),
    "growing batch, ZeRO 2": (2, "batch.micro_size=2"),
    "growing batch, ZeRO 3": (3, "batch.micro_size=4"),
    "growing batch, optimizer in host memory": (2, "batch.micro_size=4", "engine.offload_optimizer=cpu"),
    "growing batch, compiled": (1, "batch.micro_size=4", "engine.compile=true", "teacher.compile=true"),
    "growing batch, compiled, activations computed again": (
        2, "batch.micro_size=2", "engine.compile=true", "engine.activation_checkpointing=true"),
}  # fmt: skip


ADDED = [*GROWING[1:], 'student.freeze=["*embeddings*"]', "batch.micro_size=4"]
FROZEN = {f"frozen, {name}": [*PLAIN[stage], *ADDED, *more] for name, (stage, *more) in {
    "ZeRO 1": (1,),
    "ZeRO 2": (2,),
    "ZeRO 3": (3,),
    "ZeRO 3, small ones whole": (3, "engine.persistence_threshold=1000"),
    "ZeRO 3, in host memory": (3, "engine.offload_optimizer=cpu", "engine.offload_parameters=cpu"),
    "ZeRO 3, activations computed again": (3, "engine.activation_checkpointing=true"),
}.items()}  # fmt: skip
"""Embeddings, and with them the output matrix, never change."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of every case after a few steps in two processes, dropout on; one launch in all."""
    folder = tmp_path_factory.mktemp("options")
    path = workspace.make(folder)
    prepare(load(path).data, lambda line: None)
    growing = {n: [f"engine.zero_stage={stage}", *more, *GROWING] for n, (stage, *more) in SPLITS.items()}
    cases = {
        **growing,
        **FROZEN,
        **{f"plain {s}": PLAIN[s] for s in PLAIN},
        **{n: PLAIN[s] + more for n, (s, more) in OPTIONS.items()},
    }
    processes.run([WORKER, str(path), json.dumps(list(cases.values())), str(folder / "weights.pt")], 2)
    return dict(zip(cases, torch.load(folder / "weights.pt"), strict=True))


@pytest.mark.distributed
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_changes_nothing_that_is_learnt(weights, name):
    plain, ours = weights[f"plain {OPTIONS[name][0]}"], weights[name]
    assert plain.keys() == ours.keys()
    for parameter, value in plain.items():
        torch.testing.assert_close(ours[parameter], value, rtol=1e-6, atol=1e-7, msg=lambda m, p=parameter: f"{p}: {m}")


@pytest.mark.distributed
@pytest.mark.parametrize("name", list(SPLITS)[1:])
def test_a_batch_that_grows_is_added_up_whole_however_it_is_split(weights, name):
    """16 rows, then 24: two micro-batches a rank and then three, or four and then six."""
    first, ours = weights["growing batch"], weights[name]
    for parameter, value in first.items():
        torch.testing.assert_close(ours[parameter], value, rtol=0, atol=1e-5, msg=lambda m, p=parameter: f"{p}: {m}")


@pytest.mark.distributed
@pytest.mark.parametrize("name", list(FROZEN)[1:])
def test_what_is_frozen_is_whole_and_the_rest_learns_the_same(weights, name):
    first, ours = weights["frozen, ZeRO 1"], weights[name]
    for parameter, value in first.items():
        exact = 0 if "embeddings" in parameter else 1e-5
        torch.testing.assert_close(ours[parameter], value, rtol=0, atol=exact, msg=lambda m, p=parameter: f"{p}: {m}")
