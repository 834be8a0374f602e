"""What goes to Slurm: the command of a run, the runs of a sweep, and what is refused before anything is queued."""

import os
import subprocess
from pathlib import Path

import pytest

from megadistill.core.errors import UserError
from megadistill.run import submit
from megadistill.run.config import load
from megadistill.run.sweep import members
from megadistill.testing import workspace

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return workspace.make(tmp_path_factory.mktemp("workspace"))


def cluster(**values):
    return submit.Cluster.model_validate({"tasks_per_node": 2, **values})


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Stand-ins for Slurm's, in front of all others: an sbatch that takes any job, an srun that says what it is given,
    a line each."""
    for name, does in (("sbatch", "echo Submitted batch job 7"), ("srun", 'printf "%s\\n" "$@"')):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\n{does}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)


def script(job, **slurm):
    """A job's script, as Slurm would start it on one node."""
    known = {"SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1", **slurm}
    command = ["bash", *job.arguments[job.arguments.index(str(submit.SCRIPT)) :]]
    environ = {**os.environ, **job.variables, **known}
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_a_sweep_has_a_run_for_each_combination_with_a_name_that_tells():
    found = members("mine", ["seed=0,1", "optimizer.learning_rate=1e-4,5e-4", "student.init.layers=[[0, 2], [1, 3]]"])
    assert len(found) == 8
    assert found[1] == [
        "name=mine-seed0-learning_rate1e-4-layers-1-3",
        "seed=0",
        "optimizer.learning_rate=1e-4",
        "student.init.layers=[1, 3]",
    ]


@pytest.mark.parametrize(
    ("axes", "why"),
    [
        (["seed"], "is no list"),
        (["seed="], "is no list"),
        (["=1,2"], "is no list"),
        (["seed=0,1", "seed=2"], "comes twice"),
        (["name=a,b"], "each run's name"),
        (["data.dir=a/b,a-b"], "one name"),
    ],
)
def test_what_is_no_sweep_is_told(axes, why):
    with pytest.raises(UserError, match=why):
        members("mine", axes)


def test_the_command_says_all_that_the_profile_and_the_run_say(config):
    profile = cluster(time="1:00:00", exclude=["a", "b"], setup="module load cuda", srun=["--container-image=x y"])
    job = submit.job(profile, 2, load(config), config, ["seed=3"])
    shown = str(job)
    assert shown.startswith("MEGADISTILL_SETUP='module load cuda' MEGADISTILL_SRUN=")
    for option in ("--job-name=tiny", "--nodes=2", "--ntasks-per-node=2", "--time=1:00:00", "--exclude=a,b"):
        assert f" {option} " in shown
    assert shown.endswith(f"slurm/train.sbatch {config} seed=3")


def test_options_of_srun_arrive_as_the_profile_has_them(config, programs):
    options = ["--container-image=nvcr.io#nvidia/pytorch:24.01-py3", "--container-mounts=/a b:/b,/c:/d", r"--x='\"$y"]
    job = submit.job(cluster(srun=options), 1, load(config), config, [])
    ran = script(job)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert [line for line in ran.stdout.splitlines() if line in options] == options
    shown = str(job).partition(" sbatch ")[0]
    assert "\t" not in shown
    pasted = subprocess.run(["bash", "-c", f'{shown}; printf %s "$MEGADISTILL_SRUN"'], capture_output=True, text=True)
    assert pasted.stdout.split("\t") == options


def test_every_member_is_checked_before_anything_is_queued(config):
    given = load(config)
    job = submit.job(cluster(), 1, given, config, [], members("tiny", ["seed=0,1,2"]))
    assert "--array=0-2" in job.arguments
    assert job.variables["MEGADISTILL_SWEEP"] == str(job.sweep)
    with pytest.raises(UserError, match=r"batch.global_size: 12 does not divide"):
        submit.job(cluster(), 1, given, config, [], members("tiny", ["batch.global_size=16,12"]))
    with pytest.raises(UserError, match="did you mean 'steps'"):
        submit.job(cluster(), 1, given, config, [], members("tiny", ["train.stepz=1,2"]))
    with pytest.raises(UserError, match="does not divide"):
        submit.job(cluster(tasks_per_node=3), 1, given, config, [])


def test_a_second_sweep_of_a_config_leaves_the_tasks_of_the_first_what_they_are(config, programs):
    first, second = (
        submit.job(cluster(), 1, load(config), config, [], members("tiny", [axis])) for axis in ("seed=0,1", "seed=5,6")
    )
    for job in (first, second):
        assert submit.submit(job, dict(os.environ)) == "Submitted batch job 7"
    for job, seeds in ((first, (0, 1)), (second, (5, 6))):
        for task, seed in enumerate(seeds):
            started = script(job, SLURM_ARRAY_TASK_ID=str(task), SLURM_ARRAY_JOB_ID="7")
            assert started.returncode == 0, started.stderr
            assert started.stdout.splitlines()[-3:] == [str(config), f"name=tiny-seed{seed}", f"seed={seed}"]


def test_a_task_that_a_sweep_does_not_have_is_told_and_starts_nothing(config, programs):
    job = submit.job(cluster(), 1, load(config), config, [], members("tiny", ["seed=3,4"]))
    submit.submit(job, dict(os.environ))
    for task in ("2", "0"):
        started = script(job, SLURM_ARRAY_TASK_ID=task, SLURM_ARRAY_JOB_ID="7")
        assert (started.returncode, started.stdout) == (2, "")
        assert f"{job.sweep} holds nothing for task {task}; submit the sweep again" in started.stderr
        job.sweep.unlink(missing_ok=True)


def test_micro_size_auto_only_has_to_divide_by_the_ranks(config):
    auto = load(config, ["batch={global_size: 12, micro_size: auto}"])
    assert "sbatch" in str(submit.job(cluster(), 3, auto, config, []))
    with pytest.raises(UserError, match=r"batch.global_size: 12 does not divide by 8 ranks(.|\n)*: 8 or 16"):
        submit.job(cluster(), 4, auto, config, [])


def test_a_profile_that_is_not_there_is_told_with_where_they_are(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"holds: .*example") as told:
        submit.read_cluster("exmaple")
    assert told.value.fix == "copy slurm/clusters/example.yaml"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="holds: none") as told:
        submit.read_cluster("example")
    assert "go to a checkout's root" in told.value.fix
