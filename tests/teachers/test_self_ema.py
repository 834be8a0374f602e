"""A teacher that is the student's past."""

import pytest
import torch
import yaml

from megadistill.core.errors import UserError
from megadistill.core.files import read_lines
from megadistill.core.types import Needs
from megadistill.teachers.self_ema import SelfEMASource, SelfEMATeacher
from megadistill.testing import processes, tiny, workspace

CPU = torch.device("cpu")
RUNS = """
import os, sys
from pathlib import Path
from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.engine.deepspeed import import_deepspeed
from megadistill.train.loop import run

import_deepspeed()
config = Path(sys.argv[1])
prepare(load(config).data, print)
for name, steps in (("whole", 8), ("halves", 4), ("halves", 8)):
    given = ["log.every_steps=1", "checkpoint.every_steps=4", "schedule.total_steps=8", f"train.steps={steps}"]
    if (child := os.fork()) == 0:  # a process for each run, which need not import everything again
        os._exit(int(run(config, [*given, f"name={name}"], fresh=False)))
    assert os.waitpid(child, 0)[1] == 0
"""
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": workspace.LENGTH,
}


def moved(student):
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.1
    return student


def test_it_is_the_moving_average_of_all_weights():
    student = tiny.language_model("bert", 1)
    source = SelfEMATeacher(kind="self_ema", decay=0.9).build(CPU)
    source.attach(student)
    expected = {name: value.detach().clone() for name, value in student.named_parameters()}
    for step in (1, 2, 3):
        source.after_step(step, moved(student))
        for name, value in student.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * value.detach()
    for name, value in source.model.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
    assert not any(p.requires_grad for p in source.model.parameters())
    assert not source.model.training


def test_with_no_decay_it_is_a_snapshot_taken_anew_every_so_many_steps():
    student = tiny.language_model("bert", 1)
    source = SelfEMASource(0.0, 3, CPU)
    source.attach(student)
    first = source.model.hf.bert.embeddings.word_embeddings.weight.clone()
    for step in (1, 2):
        source.after_step(step, moved(student))
        assert torch.equal(source.model.hf.bert.embeddings.word_embeddings.weight, first)
    source.after_step(3, moved(student))
    assert torch.equal(
        source.model.hf.bert.embeddings.word_embeddings.weight, student.hf.bert.embeddings.word_embeddings.weight
    )


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    student = tiny.language_model("bert", 1)
    source, again = SelfEMASource(0.9, 1, CPU), SelfEMASource(0.9, 1, CPU)
    source.attach(student)
    source.after_step(1, moved(student))
    source.save(tmp_path / "teacher")
    again.attach(moved(student))
    again.load(tmp_path / "teacher")
    for ours, theirs in zip(again.model.parameters(), source.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    batch = tiny.batch(2)
    needs = Needs(teacher_hidden=frozenset({-1}))
    assert torch.equal(source.signals(batch, needs).hidden[-1], again.signals(batch, needs).hidden[-1])


def test_a_student_in_pieces_is_refused():
    student = tiny.language_model("bert", 1)
    source = SelfEMASource(0.9, 1, CPU)
    source.attach(student)
    name, parameter = next(iter(student.named_parameters()))
    parameter.data = torch.empty(0)
    with pytest.raises(UserError, match="whole student on every rank") as caught:
        source.after_step(1, student)
    assert name in caught.value.why


@pytest.mark.slow
def test_a_resumed_run_repeats_its_average_bit_for_bit(tmp_path):
    """In the one loop, with attention confined to documents: 8 steps at once, or 4 and 4 more."""
    config = workspace.make(
        tmp_path,
        teacher={"kind": "self_ema", "decay": 0.5},
        student={"kind": "hf", "architecture": "bert", "config": SMALL},
        objectives=[{"kind": "hard_ce"}, {"kind": "soft_ce"}, {"kind": "hidden_mse", "layers": {1: 2}}],
    )
    tree = yaml.safe_load(config.read_text())
    tree["data"]["attention"] = "document"
    config.write_text(yaml.safe_dump(tree))
    result = processes.finish(["-c", RUNS, str(config)])
    assert result.returncode == 0, result.stdout + result.stderr
    hashes = [
        {row["step"]: row["parameter_hash"] for row in read_lines(path) if "parameter_hash" in row}
        for path in (tmp_path / "runs" / name / "metrics.jsonl" for name in ("whole", "halves"))
    ]
    assert set(hashes[0]) == set(range(1, 9))
    assert hashes[1] == hashes[0]
