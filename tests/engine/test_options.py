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


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of every case after a few steps in two processes, dropout on; one launch in all."""
    folder = tmp_path_factory.mktemp("options")
    path = workspace.make(folder)
    prepare(load(path).data, lambda line: None)
    cases = {**{f"plain {s}": PLAIN[s] for s in PLAIN}, **{n: PLAIN[s] + more for n, (s, more) in OPTIONS.items()}}
    processes.run([WORKER, str(path), json.dumps(list(cases.values())), str(folder / "weights.pt")], 2)
    return dict(zip(cases, torch.load(folder / "weights.pt"), strict=True))


@pytest.mark.distributed
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_changes_nothing_that_is_learnt(weights, name):
    plain, ours = weights[f"plain {OPTIONS[name][0]}"], weights[name]
    assert plain.keys() == ours.keys()
    for parameter, value in plain.items():
        torch.testing.assert_close(ours[parameter], value, rtol=1e-6, atol=1e-7, msg=lambda m, p=parameter: f"{p}: {m}")
