"""Real runs of two processes that are damaged, stopped and continued: the same numbers, bit for bit."""

import json
import signal
import time

import pytest

from megadistill.core.files import read_lines
from megadistill.testing import processes, workspace


def megadistill(*arguments):
    done = processes.megadistill(*arguments)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"))
    megadistill("prepare", path)
    return path


def train(config, *assignments, ranks=2):
    return processes.run(["-m", "megadistill", "train", str(config), *assignments], ranks)


def refused(config, *assignments):
    done = processes.megadistill("train", config, *assignments)
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stderr


def contents(run):
    return {path.relative_to(run): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def trace(run, attempt):
    rows = [row for row in read_lines(run / "metrics.jsonl") if row["attempt"] == attempt and "loss_hex" in row]
    return {row["step"]: (row["loss_hex"], row["train/gradient_norm"], row["parameter_hash"]) for row in rows}


def journal(run, event):
    return [row for row in read_lines(run / "journal.jsonl") if row["event"] == event]


@pytest.mark.distributed
@pytest.mark.parametrize(("stage", "asynchronous"), [(1, False), (2, True), (3, True)])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(config, stage, asynchronous):
    """Dropout is on (0.1), and the batch grows at step 4. The last checkpoint is damaged, so the run must fall back to
    step 6 and repeat 7 to 12."""
    run = config.parent / "runs" / f"zero{stage}"
    options = [f"name=zero{stage}", f"engine.zero_stage={stage}", "engine.persistence_threshold=0"]
    options.append("batch.schedule=[{from_step: 4, global_size: 24}]")
    options += [f"checkpoint.asynchronous={asynchronous}", "checkpoint.keep=3"]
    train(config, *options)
    whole = trace(run, attempt=1)
    assert sorted(whole) == list(range(1, 13))
    assert len({loss for loss, _, _ in whole.values()}) == 12

    damaged = next((run / "checkpoints").glob("step-00000012-*"))
    shard = next((damaged / "deepspeed").glob("*optim_states.pt"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    output = train(config, *options)[0]
    again = trace(run, attempt=2)
    assert "damaged" in output
    assert shard.name in output
    assert sorted(again) == list(range(7, 13))
    assert again == {step: whole[step] for step in again}
    assert journal(run, "resume")[0]["step"] == 6
    assert shard.name in journal(run, "fallback")[0]["reason"]


@pytest.mark.distributed
def test_a_signal_stops_after_a_checkpoint_and_the_same_command_continues(config):
    run = config.parent / "runs" / "stopped"
    command = [
        "-m",
        "megadistill",
        "train",
        str(config),
        "name=stopped",
        "train.steps=400",
        "schedule.total_steps=400",
    ]
    ranks = processes.launch(command, 2)
    deadline = time.monotonic() + 120
    while len(trace(run, 1)) < 8 and time.monotonic() < deadline:
        time.sleep(0.2)
    ranks[1].send_signal(signal.SIGUSR1)  # one rank is told, both leave
    outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [85, 85], outputs
    stopped = journal(run, "signal")[0]
    assert json.loads((run / "STATUS").read_text())["state"] == "stopped"
    assert any((run / "checkpoints").glob(f"step-{stopped['step']:08d}-*"))

    steps = stopped["step"] + 3
    train(config, "name=stopped", f"train.steps={steps}", "schedule.total_steps=400")
    assert sorted(trace(run, 2)) == [stopped["step"] + n for n in (1, 2, 3)]
    assert json.loads((run / "STATUS").read_text())["state"] == "done"


@pytest.mark.distributed
def test_a_finished_run_is_given_more_steps(config):
    """They begin where it ended; the same command does them once, and the steps before stay as they were."""
    run = config.parent / "runs" / "longer"
    train(config, "name=longer", "train.steps=4", ranks=1)
    train(config, "name=longer", "train.steps=4", "train.more_steps=[3]", ranks=1)
    assert sorted(trace(run, 1)) == [1, 2, 3, 4]
    assert sorted(trace(run, 2)) == [5, 6, 7]
    rates = {row["step"]: row["train/learning_rate"] for row in read_lines(run / "metrics.jsonl") if "loss_hex" in row}
    assert rates[4] < rates[5] == max(rates.values())
    (said,) = train(config, "name=longer", "train.steps=4", "train.more_steps=[3]", ranks=1)
    assert "nothing is left to do: the run is at its end, step 7" in said
    assert trace(run, 3) == {}

    before = contents(run)
    assert "train.more_steps.0: (absent) here / 3 in the run" in refused(config, "name=longer", "train.steps=4")
    assert contents(run) == before


@pytest.mark.distributed
def test_another_number_of_ranks_sees_the_same_batches(config):
    """Same losses to fp32 rounding, dropout off: every global batch has the same rows and masks."""
    calm = "student.config={num_hidden_layers: 1, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}"
    losses = []
    for ranks, micro in ((1, 16), (2, 2)):
        name = f"ranks{ranks}"
        train(config, f"name={name}", calm, f"batch.micro_size={micro}", "train.steps=5", ranks=ranks)
        rows = trace(config.parent / "runs" / name, 1)
        losses.append([float.fromhex(rows[step][0]) for step in range(1, 6)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.distributed
def test_a_request_to_stop_is_answered_once_even_where_nothing_is_left_to_save(config):
    run = config.parent / "runs" / "asked"
    train(config, "name=asked", "train.steps=2", "schedule.total_steps=9", ranks=1)
    (run / "control" / "STOP").touch()
    left = processes.launch(
        ["-m", "megadistill", "train", str(config), "name=asked", "train.steps=5", "schedule.total_steps=9"], 1
    )[0]
    assert (left.communicate(timeout=120)[0], left.returncode)[1] == 85
    assert not (run / "control" / "STOP").exists()
    train(config, "name=asked", "train.steps=5", "schedule.total_steps=9", ranks=1)
    assert json.loads((run / "STATUS").read_text())["state"] == "done"


@pytest.mark.distributed
def test_a_run_that_is_longer_than_it_shall_be_is_refused_and_stays_as_it_is(config):
    run = config.parent / "runs" / "ended"
    train(config, "name=ended", "train.steps=3", "schedule.total_steps=9", ranks=1)
    before = contents(run)
    told = refused(config, "name=ended", "train.steps=2", "schedule.total_steps=9")
    assert "the run is at step 3 already, and it is to end at step 2" in told
    assert contents(run) == before


@pytest.mark.distributed
def test_what_cannot_be_continued_is_refused_before_the_run_is_claimed(config):
    run = config.parent / "runs" / "stage0"
    train(config, "name=stage0", "train.steps=2", "engine.zero_stage=0", ranks=1)
    before = contents(run)
    told = refused(config, "name=stage0", "train.steps=2")
    assert "a checkpoint of ZeRO stage 0 cannot be continued at another stage" in told
    assert contents(run) == before
