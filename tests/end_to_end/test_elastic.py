"""P3: a run goes on at other numbers of ranks and ZeRO stages as if nothing had happened, dropout off."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from megadistill.core.files import read_lines
from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.testing import processes, workspace

CALM = "student.config={num_hidden_layers: 1, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
LENGTH = ["schedule.total_steps=10", "checkpoint.every_steps=2", "engine.persistence_threshold=0"]
CHAIN = [(2, 1, 4), (1, 3, 6), (4, 2, 8), (2, 1, 10)]
"""(ranks, ZeRO stage, last step) of one start after the other."""


def losses(run):
    rows = [row for row in read_lines(run / "metrics.jsonl") if "loss_hex" in row]
    return {row["step"]: float.fromhex(row["loss_hex"]) for row in rows}


@pytest.mark.distributed
@pytest.mark.slow
def test_ranks_and_stages_may_change_at_every_start(tmp_path):
    path = workspace.make(tmp_path)
    prepare(load(path).data, lambda line: None)

    def train(name, ranks, stage, steps):
        options = [f"name={name}", CALM, *LENGTH, f"train.steps={steps}", f"engine.zero_stage={stage}"]
        options.append(f"batch.micro_size={16 // ranks // (1 + (stage == 2))}")
        return processes.run(["-m", "megadistill", "train", str(path), *options], ranks)[0]

    train("whole", 2, 1, 10)
    for ranks, stage, steps in CHAIN:
        output = train("elastic", ranks, stage, steps)
    assert "converting step-00000008-a0003" in output
    assert "not bitwise: engine.zero_stage: 1 here / 2 in the run" in output
    runs = tmp_path / "runs"
    whole, elastic = losses(runs / "whole"), losses(runs / "elastic")
    assert elastic.keys() == whole.keys()
    assert [elastic[step] for step in whole] == pytest.approx(list(whole.values()), rel=1e-5)
    assert not list((runs / "elastic" / "checkpoints").glob(".tmp*"))


@pytest.mark.distributed
@pytest.mark.slow
def test_frozen_weights_are_those_of_the_checkpoint(tmp_path):
    path = workspace.make(tmp_path)
    prepare(load(path).data, lambda line: None)
    origin = shutil.copytree(tmp_path / "teacher", tmp_path / "origin")
    start = {name: 1.1 * value for name, value in load_file(origin / "model.safetensors").items()}
    save_file(start, origin / "model.safetensors", {"format": "pt"})
    options = [f"student={{kind: hf, init: {{kind: folder, path: {origin}}}, freeze: ['*embeddings*']}}", *LENGTH]
    for ranks, stage, steps in [(2, 3, 2), (1, 1, 4), (2, 2, 6), (1, 3, 8), (1, 3, 10)]:
        more = [f"train.steps={steps}", f"engine.zero_stage={stage}", "batch.micro_size=8"]
        processes.run(["-m", "megadistill", "train", str(path), *options, *more], ranks)
        student = next((tmp_path / "runs" / "tiny" / "checkpoints").glob(f"step-{steps:08d}-*")) / "student"
        learnt = load_file(student / "model.safetensors")
        assert learnt.keys() == start.keys()
        changed = [name for name, value in start.items() if not torch.equal(learnt[name], value)]
        assert changed
        assert not [name for name in changed if "embeddings" in name]
        # what the folder holds from now on is not what the run began with
        other = {name: 0.9 * value for name, value in start.items()}
        save_file(other, origin / "model.safetensors", {"format": "pt"})
