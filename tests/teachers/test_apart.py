"""A teacher on ranks of its own teaches what one on every rank teaches, and ends when its students do."""

import signal
import threading
import time
from typing import get_args

import pytest
import torch
import torch.distributed as dist

from megadistill.core.errors import UserError
from megadistill.core.files import read_lines
from megadistill.core.types import Attends
from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.teachers import apart
from megadistill.testing import processes, tiny, workspace

pytestmark = pytest.mark.distributed
APART = ["teacher.placement=own_ranks", "teacher.own_ranks=1"]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"))
    prepare(load(path).data, lambda line: None)
    return path


def command(config, name, *more):
    settings = [f"name={name}", "train.steps=3", "schedule.total_steps=6", "evaluate.rows=16", "log.every_steps=1"]
    return ["-m", "megadistill", "train", str(config), *settings, *more]


def wait_for(there, ranks, seconds=120):
    deadline = time.monotonic() + seconds
    while not there() and all(rank.poll() is None for rank in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)


def trace(run):
    kept = ("step", "loss_hex", "parameter_hash", "teacher/loss", "heldout/agreement_top1")
    return [{name: row[name] for name in kept if name in row} for row in read_lines(run / "metrics.jsonl")]


def test_losses_are_those_of_a_replicated_teacher_also_after_a_resume(config):
    runs = config.parent / "runs"
    processes.run(command(config, "replicated", "train.steps=6"), 2)
    for steps in (3, 6):
        processes.run(command(config, "apart", *APART, f"train.steps={steps}"), 3)
    ours, theirs = trace(runs / "apart"), trace(runs / "replicated")
    assert len(theirs) >= 8
    assert [row for row in ours if "loss_hex" in row] == [row for row in theirs if "loss_hex" in row]
    assert ours[-1] == theirs[-1]
    events = read_lines(runs / "apart" / "journal.jsonl")
    assert [event["world_size"] for event in events if "world_size" in event] == [2, 2]


def test_how_a_position_attends_is_sent_along():
    model, batch = tiny.language_model("bert", 1).eval(), tiny.packed([[5, 4], [6, 6]])
    store, states = dist.HashStore(), []

    def serve():
        apart._answer(model, apart._pair(store, 0, 1, 60), threading.Lock(), lambda: False)

    server = threading.Thread(target=serve, daemon=True)
    server.start()
    link = apart.Link(store, 0, 60, lambda: None)
    for attends in get_args(Attends):
        states.append(link.ask(batch, frozenset(), attends, tiny.WIDTH, torch.float32)[0])
    link.close(0)
    server.join()
    for attends, theirs in zip(get_args(Attends), states, strict=True):
        model.attends = attends
        assert torch.equal(model.signals(batch, frozenset({-1})).hidden[-1], theirs)
    assert not torch.equal(states[0], states[1])


def test_a_signal_to_the_teachers_rank_stops_the_run(config):
    ranks = processes.launch(command(config, "stopped", *APART, "train.steps=2000"), 3)
    run = config.parent / "runs" / "stopped"
    wait_for(lambda: (run / "metrics.jsonl").exists(), ranks)
    ranks[2].send_signal(signal.SIGUSR1)
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [85, 85, 85], "\n".join(outputs)
    stops = [event["signals"] for event in read_lines(run / "journal.jsonl") if event["event"] == "signal"]
    assert stops == ["a signal to a teacher's rank"]


def test_a_teacher_that_dies_ends_the_run_and_the_same_command_continues(config):
    ranks = processes.launch(command(config, "bereft", *APART, "train.steps=2000", "checkpoint.every_steps=1"), 3)
    run = config.parent / "runs" / "bereft"
    wait_for(lambda: list(run.glob("checkpoints/step-*")), ranks)
    ranks[2].kill()
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert all(rank.returncode not in (0, 85) for rank in ranks), "\n".join(outputs)
    reached = max(row["step"] for row in read_lines(run / "metrics.jsonl"))
    processes.run(command(config, "bereft", *APART, f"train.steps={reached + 2}"), 3)


def test_a_mistake_of_the_students_lets_the_teacher_go(config):
    ranks = processes.launch(command(config, "wrong", *APART, "data.sequence_length=16"), 3)
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2, 2], "\n".join(outputs)
    assert "rows of 32 tokens" in outputs[0]


def test_what_cannot_be_is_refused_with_the_config(config):
    attention = "objectives=[{kind: hard_ce}, {kind: attention_mse, layers: {1: 1}}]"
    with pytest.raises(UserError, match="sends hidden states only"):
        load(config, [*APART, attention])
    with pytest.raises(UserError, match="no objective asks the teacher"):
        load(config, [*APART, "objectives=[{kind: hard_ce}]"])
    found = load(config, APART)
    assert found.students(3) == 2
    for ranks in (0, 1):
        with pytest.raises(UserError, match="at least one student"):
            found.students(ranks)
