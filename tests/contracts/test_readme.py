"""Does every command of the README run? All lines of its fenced `bash` blocks do here, in order, none skipped.

A comment behind a command says how the test makes it small: `command  # in tests: word ...`. The words are
appended to the command; `small` stands for the overrides below. `srun` talks to a real Slurm that the test starts;
where none is installed it is played by a stand-in beside this file, which starts the tasks as Slurm would.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from megadistill.testing import slurm

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
MARK = "in tests:"
SMALL = "train.steps=2 data.corpora.0.max_megabytes=1 evaluate.rows=32"


def commands() -> list[tuple[str, str]]:
    """(command as written, what the test appends) of every line of every bash block."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command, _, words = line.partition(MARK)
            command = command.partition(" #")[0].strip()
            if command and not command.startswith("#"):
                found.append((command, re.sub(r"^ small\b", SMALL, words)))
    return found


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the checkout, so that what the commands write stays out of it."""
    folder = tmp_path_factory.mktemp("readme")
    for entry in ROOT.iterdir():
        if entry.name not in ("runs", "prepared", ".git") and not entry.name.endswith("cache"):
            (folder / entry.name).symlink_to(entry)
    programs = folder / "programs"
    programs.mkdir()
    script(programs / "megadistill", f'exec {sys.executable} -m megadistill "$@"')
    if slurm.missing():
        shutil.copy(Path(__file__).with_name("srun_stand_in.sh"), programs / "srun")
        script(programs / "scontrol", "echo 127.0.0.1")
    return folder


@pytest.fixture(scope="module")
def environ(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What the commands run with; a Slurm is up meanwhile, if it can be."""
    with ExitStack() as stack:
        given = dict(os.environ)
        if not slurm.missing():
            given = stack.enter_context(slurm.Cluster(tmp_path_factory.mktemp("slurm"), num_nodes=1)).environ
        path = os.pathsep.join([str(workplace / "programs"), str(Path(sys.executable).parent), given["PATH"]])
        given |= {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        if "DS_ACCELERATOR" not in given and shutil.which("nvidia-smi") is None:
            given["DS_ACCELERATOR"] = "cpu"
        yield given


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_there_are_commands_and_the_first_two_are_the_main_ones() -> None:
    assert [command for command, _ in commands()][:2] == ["bash launch/quickstart.sh", "bash tools/test.sh"]


def test_every_path_that_the_readme_names_exists() -> None:
    named = re.findall(r"`((?:megadistill|launch|configs|tools|tests|slurm)/[\w./-]+)`", README.read_text())
    assert named
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.soak
@pytest.mark.distributed
def test_every_command_runs(workplace: Path, environ: dict[str, str]) -> None:
    for command, appended in commands():
        result = subprocess.run(
            ["bash", "-c", f"{command} {appended}"],
            cwd=workplace,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=1200,
        )
        assert result.returncode == 0, f"$ {command} {appended}\n{result.stdout[-6000:]}"
