"""A run on a teacher's kept answers, with a second member that learns in the same step, stopped and continued."""

import json

import pytest
import yaml
from safetensors.torch import load_file

from megadistill.testing import processes, workspace

pytestmark = pytest.mark.slow

MEMBER = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_positions": workspace.LENGTH}


def megadistill(*arguments):
    done = processes.megadistill(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prepare_asks_and_training_reads(tmp_path):
    path = workspace.make(tmp_path, causal=True)
    tree = yaml.safe_load(path.read_text())
    of = {"kind": "online", "path": str(tmp_path / "teacher"), "guard": None}
    tree["teacher"] = {"kind": "cached", "dir": str(tmp_path / "answers"), "of": of}
    member = {"kind": "hf", "architecture": "gpt2", "config": MEMBER}
    tree["objectives"] = [{"kind": "soft_ce"}, {"kind": "hard_ce"}, {"kind": "mutual", "member": member}]
    path.write_text(yaml.safe_dump(tree))
    assert "bytes each" in megadistill("prepare", path)
    (tmp_path / "teacher" / "model.safetensors").rename(tmp_path / "teacher" / "kept")
    # the student starts from scratch: nobody needs the teacher's weights any more
    scratch = ["student={kind: hf, architecture: gpt2, config: {n_layer: 1, n_embd: 16, n_head: 2, n_positions: 32}}"]
    megadistill("train", path, *scratch, "train.steps=3", "schedule.total_steps=6")
    megadistill("train", path, *scratch, "train.steps=6", "schedule.total_steps=6")
    run = tmp_path / "runs" / "tiny"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert all(row[f"train/objective/{name}"] > 0 for row in steps for name in ("soft_ce", "hard_ce", "mutual"))
    assert steps[-1]["train/objective/mutual"] < steps[0]["train/objective/mutual"]
    assert not any("heldout/agreement_top1" in row for row in rows)  # its answers are to the rows of training
    journal = [json.loads(line) for line in (run / "journal.jsonl").read_text().splitlines()]
    assert [event["event"] for event in journal if event["event"] in ("start", "resume")] == ["start", "resume"]
    assert {event["teacher"]["sha256"] for event in journal if "teacher" in event} == {
        json.loads((tmp_path / "answers" / "index.json").read_text())["fingerprint"]
    }
    newest = max((run / "checkpoints").glob("step-*"))
    assert not any("member" in name for name in load_file(newest / "student" / "model.safetensors"))
