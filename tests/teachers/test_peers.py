"""Two runs that teach each other: which checkpoint, when, and what is said when it does not come."""

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from megadistill.core.errors import UserError
from megadistill.core.files import read_lines
from megadistill.engine import checkpoint
from megadistill.models.loading import save_pretrained
from megadistill.teachers.peers import PeerSource
from megadistill.testing import processes, tiny, workspace

CPU = torch.device("cpu")


def peer_at(run: Path, step: int, seed: int, **sizes):
    """Commit a checkpoint with a student in it, as a run does."""
    model = tiny.language_model("bert", 1, seed=seed, **sizes)

    def write(folder):
        save_pretrained(model, folder / "student", {name: p.detach() for name, p in model.named_parameters()})

    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    snapshot, keep = partial(partial, write), checkpoint.Keep(9)
    return checkpoint.save(run / "checkpoints", step, 1, snapshot, {}, lambda: None, keep, print, {1: None}), model


def attached(run, wait=0.0):
    source = PeerSource(run, 10, wait, CPU)
    source.attach(tiny.language_model("bert", 1, seed=0))
    return source


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_teacher_of_a_step_is_always_the_same_checkpoint(tmp_path):
    models = {step: peer_at(tmp_path, step, seed=step)[1] for step in (10, 20, 30)}
    source = attached(tmp_path)
    seen = {}
    for step in range(1, 45):
        seen[step] = source.step  # what teaches during this step
        source.after_step(step, tiny.language_model("bert", 1))
    assert [seen[s] for s in (1, 10, 20, 21, 30, 31, 40, 41)] == [0, 0, 0, 10, 10, 20, 20, 30]
    assert torch.equal(weights(source.models[0]), weights(models[30]))
    assert not any(p.requires_grad for p in source.models[0].parameters())


def test_a_resumed_run_goes_on_with_the_same_peer(tmp_path):
    peer_at(tmp_path / "peer", 10, seed=1)
    source, again = attached(tmp_path / "peer"), attached(tmp_path / "peer")
    source.after_step(20, tiny.language_model("bert", 1))
    source.save(tmp_path / "teacher")
    again.load(tmp_path / "teacher")
    assert again.step == 10
    assert torch.equal(weights(again.models[0]), weights(source.models[0]))


def test_what_can_go_wrong_is_told(tmp_path):
    with pytest.raises(UserError, match="has not reached step 10 in 0 seconds"):
        attached(tmp_path / "nobody").after_step(20, None)
    peer_at(tmp_path / "ahead", 25, seed=1)
    with pytest.raises(UserError, match="keeps no checkpoint of step 10") as caught:
        attached(tmp_path / "ahead").after_step(20, None)
    assert "checkpoint.keep_every_steps to 10" in caught.value.fix
    path, _ = peer_at(tmp_path / "damaged", 10, seed=1)
    (path / "student" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is damaged"):
        attached(tmp_path / "damaged").after_step(20, None)
    peer_at(tmp_path / "other", 10, seed=1, vocab_size=77)
    with pytest.raises(UserError, match="vocabulary of 77, this run 61"):
        attached(tmp_path / "other").after_step(20, None)


@pytest.mark.slow
@pytest.mark.distributed
def test_two_runs_of_two_processes_learn_from_each_other(tmp_path):
    """Neither waits for ever, both learn from step 9 on, and the peer's term is the one that the ramp allows."""
    config = workspace.make(
        tmp_path,
        causal=True,
        student={"kind": "hf", "architecture": "gpt2", "config": {
            "n_layer": 1, "n_embd": 16, "n_head": 2, "n_positions": workspace.LENGTH}},
        objectives=[
            {"kind": "hard_ce"},
            {"kind": "soft_ce", "temperature": 1, "ramp": {"from_step": 8, "to_step": 9}},
        ],
        batch={"global_size": 8, "micro_size": 4},
        train={"steps": 10, "timeout_seconds": 120},
        checkpoint={"every_steps": 4, "keep_every_steps": 4},
        log={"every_steps": 1, "tensorboard": False},
    )  # fmt: skip
    assert processes.megadistill("prepare", config).returncode == 0
    started = []
    for name, other, seed in (("left", "right", 1), ("right", "left", 2)):
        tree = yaml.safe_load(config.read_text()) | {
            "name": name,
            "seed": seed,
            "teacher": {"kind": "peer", "run": str(tmp_path / "runs" / other), "every_steps": 4, "wait_seconds": 200},
        }
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(tree))
        started += processes.launch(["-m", "megadistill", "train", str(file)], 2)
    outputs = [process.communicate(timeout=400)[0] for process in started]
    assert [process.returncode for process in started] == [0] * 4, "\n".join(outputs)
    for name in ("left", "right"):
        rows = {
            row["step"]: row for row in read_lines(tmp_path / "runs" / name / "metrics.jsonl") if "train/loss" in row
        }
        early, late = rows[8], rows[10]
        assert early["train/loss"] == pytest.approx(early["train/objective/hard_ce"], rel=1e-5)
        both = late["train/objective/hard_ce"] + late["train/objective/soft_ce"]
        assert late["train/loss"] == pytest.approx(both, rel=1e-5)
        assert late["train/objective/soft_ce"] > 0
