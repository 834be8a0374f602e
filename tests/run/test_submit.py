"""What goes to Slurm: the command of a run, the runs of a sweep, and what is refused before anything is queued."""

import pytest

from megadistill.core.errors import UserError
from megadistill.run import submit
from megadistill.run.config import load
from megadistill.run.sweep import members
from megadistill.testing import workspace


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return workspace.make(tmp_path_factory.mktemp("workspace"))


def cluster(**values):
    return submit.Cluster.model_validate({"tasks_per_node": 2, **values})


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


def test_every_member_is_checked_before_anything_is_queued(config):
    given = load(config)
    job = submit.job(cluster(), 1, given, config, [], members("tiny", ["seed=0,1,2"]))
    assert "--array=0-2" in job.arguments
    assert job.variables["MEGADISTILL_SWEEP"].endswith("slurm/tiny.sweep")
    with pytest.raises(UserError, match=r"batch.global_size: 12 does not divide"):
        submit.job(cluster(), 1, given, config, [], members("tiny", ["batch.global_size=16,12"]))
    with pytest.raises(UserError, match="did you mean 'steps'"):
        submit.job(cluster(), 1, given, config, [], members("tiny", ["train.stepz=1,2"]))
    with pytest.raises(UserError, match="does not divide"):
        submit.job(cluster(tasks_per_node=3), 1, given, config, [])


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
