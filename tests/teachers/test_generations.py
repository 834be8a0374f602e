"""Runs that learn from the runs before them, to their ends."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from megadistill.core.errors import UserError
from megadistill.core.types import Needs
from megadistill.models.students.hf import HFStudent
from megadistill.run.trained import located, student_folder
from megadistill.teachers.ensemble import EnsembleTeacher
from megadistill.teachers.generations import GenerationsTeacher
from megadistill.teachers.online import OnlineTeacher, weights_sha256
from megadistill.testing import processes, workspace

OBJECTIVES = {0: [{"kind": "hard_ce"}], 1: [{"kind": "hard_ce"}, {"kind": "soft_ce", "temperature": 1}]}


@pytest.fixture(scope="module")
def born(tmp_path_factory):
    """Three generations: on labels, from the first, and from both."""
    folder = tmp_path_factory.mktemp("generations")
    config = workspace.make(
        folder,
        student={"kind": "hf", "architecture": "bert", "config": {
            "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}},
        train={"steps": 2, "timeout_seconds": 120},
    )  # fmt: skip
    tree = yaml.safe_load(config.read_text())
    for number in range(3):
        teacher = {
            "kind": "generations",
            "run": str(folder / "runs" / "born"),
            "generation": number,
            "learns_from": "all" if number == 2 else "last",
            "guard": {"max_loss": None},
        }
        tree |= {"name": f"born-{number}", "seed": number, "objectives": OBJECTIVES[min(number, 1)]}
        tree["teacher"] = teacher if number else None
        config.write_text(yaml.safe_dump(tree))
        verbs = ["prepare", "train"] if number == 0 else ["validate", "train"]
        for verb in verbs:
            done = processes.megadistill(verb, config)
            assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs"


def teacher_of(run):
    manifest = max((run / "checkpoints").glob("*/MANIFEST.json"))
    return yaml.safe_load(manifest.read_text())["facts"]["teacher"]


def test_each_learns_from_the_one_before_it_or_from_all(born):
    assert teacher_of(born / "born-0") is None
    first, second = teacher_of(born / "born-1"), teacher_of(born / "born-2")
    assert first["path"] == student_folder(str(born / "born-0"))
    assert [member["path"] for member in second["members"]] == [student_folder(str(born / f"born-{n}")) for n in (0, 1)]
    assert second["members"][0]["sha256"] == first["sha256"] != second["members"][1]["sha256"]
    assert weights_sha256(first["path"]) != weights_sha256(second["members"][1]["path"])


def test_a_student_starts_from_a_run_or_a_step_of_it(born):
    run = str(born / "born-0")
    student = HFStudent(kind="hf", init={"kind": "folder", "path": f"{run}@2"})
    theirs = load_file(Path(student_folder(run)) / "model.safetensors")
    ours = dict(located(student).build(None, 0, False, 0).hf.named_parameters())
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items() if name in theirs)
    with pytest.raises(UserError, match=r"born-0@7: the run keeps no checkpoint of that step") as caught:
        student_folder(f"{run}@7")
    assert "it has 1, 2" in str(caught.value.why)


def test_a_generation_that_still_learns_is_no_teacher(born):
    status = born / "born-1" / "STATUS"
    before = status.read_text()
    status.write_text(before.replace("done", "running"))
    teacher = GenerationsTeacher(kind="generations", run=str(born / "born"), generation=2)
    with pytest.raises(UserError, match="born-1@end: the run is not done") as caught:
        located(teacher.stands_for([]))
    status.write_text(before)
    assert "it is running" in str(caught.value.why)
    with pytest.raises(UserError, match=r"there is no run .*born-8"):
        located(teacher.model_copy(update={"generation": 9}).stands_for([]))


def test_what_it_stands_for():
    one = GenerationsTeacher(kind="generations", run="runs/b", generation=3)
    every = one.model_copy(update={"learns_from": "all"})
    assert one.stands_for([]) == OnlineTeacher(kind="online", path="runs/b-2@end")
    assert isinstance(every.stands_for([]), EnsembleTeacher)
    assert every.paths() == ["runs/b-0@end", "runs/b-1@end", "runs/b-2@end"]
    assert every.cannot(Needs(again=True))
    assert not one.cannot(Needs(again=True))
