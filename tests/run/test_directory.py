"""Does a run directory continue only the run that it holds, for only one owner, and tell what changed?"""

from __future__ import annotations

import json
import os
from multiprocessing import get_context
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from megadistill.core.dist import World
from megadistill.core.errors import Exit, StaleAttempt, UserError
from megadistill.run import environment, restarts, sameness
from megadistill.run.directory import RunDirectory, end_cut_line
from megadistill.run.sections import BatchConfig

ONE = World()


class Train(BaseModel):
    steps: int = 100
    more_steps: list[int] = []
    timeout_seconds: float = 1800


class Schedule(BaseModel):
    kind: str = "linear"
    total_steps: int | None = None


class Log(BaseModel):
    every_steps: int = 10


class Config(BaseModel):
    """The parts of RunConfig that decide whether a run may be continued."""

    name: str = "tiny"
    directory: Path
    seed: int = 0
    train: Train = Train()
    schedule: Schedule = Schedule()
    log: Log = Log()
    batch: BatchConfig = BatchConfig(global_size=16, micro_size=4)

    @property
    def run_directory(self) -> Path:
        return self.directory / self.name


def config(tmp_path: Path, **values) -> Config:
    return Config.model_validate({"directory": tmp_path / "runs", **values})


def open_run(tmp_path: Path, fresh: bool = False, **values) -> RunDirectory:
    return RunDirectory.open(config(tmp_path, **values), fresh, ONE)


def contents(path: Path) -> dict[str, bytes]:
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


# ---------------------------------------------------------------------------------- creating


def test_a_new_run_is_described_in_full(tmp_path):
    run = open_run(tmp_path, seed=3)
    identity = json.loads(run.identity.read_text())
    assert identity["id"] == run.id
    assert identity["code"]["sources"] == environment.source_hash()
    assert yaml.safe_load(run.config.read_text())["seed"] == 3
    assert "train" not in yaml.safe_load(run.config.read_text())
    assert yaml.safe_load(run.resolved_config.read_text())["train"]["steps"] == 100
    assert json.loads(run.environment.read_text())["numerics"]["world size"] == 1
    assert run.command.read_text().strip()
    assert sorted(p.name for p in run.path.parent.iterdir()) == ["tiny"]
    assert run.not_bitwise == run.changed == []


def test_a_failure_while_creating_leaves_nothing(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with pytest.raises(UserError, match="cannot create the run directory"):
        open_run(tmp_path)
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_folder_that_is_no_run_is_refused_and_left_alone(tmp_path):
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "thesis.tex").write_text("x")
    for fresh in (False, True):
        with pytest.raises(UserError, match="not a run directory"):
            open_run(tmp_path, fresh)
    assert list(contents(tmp_path)) == ["runs/tiny/thesis.tex"]


def test_an_empty_folder_may_become_a_run(tmp_path):
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    assert open_run(tmp_path).identity.exists()


# ---------------------------------------------------------------------------------- continuing


def test_another_config_is_refused_with_every_differing_field(tmp_path):
    run = open_run(tmp_path)
    before = contents(run.path)
    with pytest.raises(UserError) as caught:
        open_run(tmp_path, seed=1, schedule={"kind": "cosine"}, train={"timeout_seconds": 5})
    assert caught.value.why.splitlines() == [
        "seed: 1 here / 0 in the run",
        "  schedule.kind: cosine here / linear in the run",
    ]
    assert "--fresh" in caught.value.fix
    assert contents(run.path) == before


def test_a_field_that_has_come_since_had_its_default(tmp_path):
    run = open_run(tmp_path)
    stored = yaml.safe_load(run.resolved_config.read_text())
    default = stored.pop("seed")
    run.resolved_config.write_text(yaml.safe_dump(stored))
    open_run(tmp_path)
    with pytest.raises(UserError, match=f"seed: {default + 1} here / {default} in the run"):
        open_run(tmp_path, seed=default + 1)


def test_harmless_fields_may_differ_and_are_told(tmp_path):
    first = open_run(tmp_path)
    second = open_run(tmp_path, train={"timeout_seconds": 5}, log={"every_steps": 1})
    assert second.id == first.id
    assert second.changed == [
        "train.timeout_seconds: 5.0 here / 1800.0 in the run",
        "log.every_steps: 1 here / 10 in the run",
    ]
    second.claim()
    assert yaml.safe_load(second.resolved_config.read_text())["log"]["every_steps"] == 1


def test_more_steps_are_harmless_only_if_the_decay_ends_where_it_did(tmp_path):
    open_run(tmp_path)
    with pytest.raises(UserError) as caught:
        open_run(tmp_path, train={"steps": 200})
    assert "train.steps: 200 here / 100 in the run" in caught.value.why
    run = open_run(tmp_path, train={"steps": 200}, schedule={"total_steps": 100})
    assert len(run.changed) == 2


def test_steps_may_be_added_and_what_was_added_stays(tmp_path):
    open_run(tmp_path).claim()
    run = open_run(tmp_path, train={"more_steps": [50]})
    assert run.changed == ["train.more_steps.0: 50 here / (absent) in the run"]
    run.claim()
    open_run(tmp_path, train={"more_steps": [50, 70]}).claim()
    for given, told in (([60, 70], "0: 60 here / 50"), ([50], r"1: \(absent\) here / 70")):
        with pytest.raises(UserError, match=rf"more_steps.{told} in the run(.|\n)*give the train.more_steps that"):
            open_run(tmp_path, train={"more_steps": given})
    with pytest.raises(UserError, match=r"train.more_steps=\[N\]"):
        open_run(tmp_path, train={"steps": 150})


def test_the_fingerprint_agrees_with_the_comparison():
    base = config(Path("x")).model_dump(mode="json")
    same = config(Path("y"), log={"every_steps": 1}, train={"steps": 200}, schedule={"total_steps": 100})
    other = config(Path("x"), train={"steps": 200}).model_dump(mode="json")
    assert sameness.fingerprint(base) == sameness.fingerprint(same.model_dump(mode="json"))
    assert sameness.fingerprint(base) != sameness.fingerprint(other)
    assert sameness.compare({**base, "new": {"field": 1}}, base)[1] == ["new.field: 1 here / (absent) in the run"]


def test_fresh_moves_the_old_run_aside(tmp_path):
    ids = [open_run(tmp_path, fresh=True, seed=seed).id for seed in range(3)]
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["tiny", "tiny.old-1", "tiny.old-2"]
    assert json.loads((tmp_path / "runs" / "tiny.old-1" / "run.json").read_text())["id"] == ids[0]


def test_fresh_leaves_a_run_that_lives_where_it_is(tmp_path, monkeypatch):
    run = open_run(tmp_path)
    run.claim()
    before = contents(tmp_path)
    monkeypatch.setattr(restarts, "_trains", lambda pid: pid == os.getpid())  # as another process would see this one
    with pytest.raises(UserError, match="attempt 1 of this run is training it"):
        open_run(tmp_path, fresh=True)
    assert contents(tmp_path) == before
    monkeypatch.setattr(restarts, "_trains", lambda pid: False)
    assert open_run(tmp_path, fresh=True).id != run.id


def test_a_requeued_job_is_fresh_only_once(tmp_path, monkeypatch):
    old = open_run(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    first = open_run(tmp_path, fresh=True)  # requeued before it had begun
    again = open_run(tmp_path, fresh=True)
    assert len({old.id, first.id, again.id}) == 2
    assert again.id == first.id


def test_a_changed_environment_is_told_as_not_bitwise(tmp_path):
    run = open_run(tmp_path)
    facts = json.loads(run.environment.read_text())
    facts["numerics"] |= {"torch": "1.0", "megadistill sources": 64 * "a"}
    run.environment.write_text(json.dumps(facts))
    again = RunDirectory.open(config(tmp_path), False, World(0, 4, 0))
    names = [reason.partition(":")[0] for reason in again.not_bitwise]
    assert names == ["world size", "torch", "megadistill sources"]
    assert again.not_bitwise[-1].startswith("megadistill sources: aaaaaaaaaaaa before, ")
    assert again.not_bitwise[0] == "world size: 1 before, 4 now"
    again.claim()
    claim = json.loads((run.attempts / "000001.json").read_text())
    assert claim["not_bitwise"] == again.not_bitwise
    assert RunDirectory.open(config(tmp_path), False, World(0, 4, 0)).not_bitwise == []


def test_changed_data_is_refused(tmp_path):
    open_run(tmp_path).data_is("abc")
    run = open_run(tmp_path)
    run.data_is("abc")
    with pytest.raises(UserError, match="data of the run"):
        run.data_is("abd")


# ---------------------------------------------------------------------------------- owning


def test_a_newer_claim_makes_the_older_one_stale(tmp_path):
    first, second = open_run(tmp_path), open_run(tmp_path)
    assert (first.claim(), second.claim()) == (1, 2)
    second.still_ours()
    with pytest.raises(StaleAttempt) as caught:
        first.still_ours()
    assert caught.value.exit_code == Exit.NEVER_REQUEUE
    assert f"pid {os.getpid()}" in caught.value.why
    with pytest.raises(StaleAttempt):
        first.resumed(None)


def test_an_attempt_of_a_run_that_was_started_over_is_stale(tmp_path):
    first = open_run(tmp_path)
    first.claim()
    waiting = open_run(tmp_path)
    fresh = open_run(tmp_path, fresh=True)
    with pytest.raises(StaleAttempt, match="started over"):
        waiting.claim()
    assert fresh.claim() == first.attempt == 1  # the same number in the same place, and still told apart
    fresh.still_ours()
    with pytest.raises(StaleAttempt, match="started over"):
        first.still_ours()


def claim_at_once(path: Path, barrier, queue) -> None:
    run = open_run(path)
    barrier.wait()
    queue.put(run.claim())


def test_claims_made_at_the_same_instant_differ(tmp_path):
    open_run(tmp_path)
    context = get_context("fork")
    barrier, queue = context.Barrier(8), context.Queue()
    children = [context.Process(target=claim_at_once, args=(tmp_path, barrier, queue)) for _ in range(8)]
    for child in children:
        child.start()
    assert sorted(queue.get(timeout=30) for _ in children) == list(range(1, 9))
    for child in children:
        child.join()


def test_history_is_what_attempts_recorded(tmp_path):
    for origin in (None, "killed before it restored anything", (10, 1), (20, 3)):
        run = open_run(tmp_path)
        run.claim()
        if not isinstance(origin, str):
            run.resumed(origin)
    (run.attempts / "000005.json").touch()  # killed while claiming
    assert run.history() == {1: None, 3: (10, 1), 4: (20, 3)}
    assert open_run(tmp_path).claim() == 6


# ---------------------------------------------------------------------------------- telling


def test_the_journal_survives_a_line_cut_short(tmp_path):
    run = open_run(tmp_path)
    run.claim()
    run.journal("start")
    with open(run.journal_file, "a") as handle:
        handle.write('{"event": "sav')  # killed here
    again = open_run(tmp_path)
    again.claim()
    again.journal("resume", step=10, from_checkpoint="step-00000010-a0001")
    assert [(row["event"], row["attempt"], row["step"]) for row in again.events()] == [
        ("start", 1, None),
        ("resume", 2, 10),
    ]


def test_end_cut_line_changes_nothing_else(tmp_path):
    path = tmp_path / "x"
    end_cut_line(path)
    assert not path.exists()
    path.write_text("a\n")
    end_cut_line(path)
    assert path.read_text() == "a\n"


def test_status_is_replaced(tmp_path):
    run = open_run(tmp_path)
    run.claim()
    run.status("training", step=1)
    run.status("stopped", step=2)
    status = json.loads(run.status_file.read_text())
    assert (status["state"], status["step"], status["attempt"]) == ("stopped", 2, 1)


RANK = """
import sys
from pathlib import Path
from megadistill.core import dist
from megadistill.core.errors import UserError
sys.path.insert(0, sys.argv[1])
from test_directory import config
from megadistill.run.directory import RunDirectory
world = dist.from_environment()
dist.connect(world, 30)
run = RunDirectory.open(config(Path(sys.argv[2])), False, world)
try:
    RunDirectory.open(config(Path(sys.argv[2]), seed=1), False, world)
except UserError as error:
    refused = error.why
print(run.id, run.claim(), refused)
"""


@pytest.mark.distributed
def test_two_ranks_own_one_attempt_and_are_refused_alike(tmp_path):
    from megadistill.testing import processes

    outputs = processes.run(["-c", RANK, str(Path(__file__).parent), str(tmp_path)], 2, timeout=60)
    answers = {output.splitlines()[-1] for output in outputs}
    assert len(answers) == 1
    assert answers.pop().endswith("1 seed: 1 here / 0 in the run")


def test_the_config_it_keeps_is_the_one_it_was_given(tmp_path):
    from megadistill.run.config import dump, load

    preset = Path(__file__).parents[2] / "configs" / "quickstart_teacher.yaml"
    given = load(preset, [f"directory={tmp_path}", "batch.micro_size=16"])
    run = RunDirectory.open(given, False, ONE)
    assert dump(load(run.config)) == dump(load(run.resolved_config)) == dump(given)
    with pytest.raises(UserError) as caught:
        RunDirectory.open(load(run.config, ["batch.global_size=512", "checkpoint.keep=3"]), False, ONE)
    assert caught.value.why == "batch.global_size: 512 here / 32 in the run"


def test_it_knows_the_micro_size_that_it_has_begun_with(tmp_path):
    given = config(tmp_path)
    assert RunDirectory.micro_size(given, fresh=False) is None
    open_run(tmp_path)
    open_run(tmp_path, batch={"global_size": 16, "micro_size": 8})
    assert RunDirectory.micro_size(given, fresh=False) == 4, "not what it has gone on with"
    assert RunDirectory.micro_size(given, fresh=True) is None
