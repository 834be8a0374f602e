"""Does every command of the README run? All lines of its fenced `bash` blocks do here, in order, none skipped.

`SMALLER` has what is appended to a command to make it small. `srun` talks to a real Slurm that the test starts;
where none is installed it is played by a stand-in beside this file, which starts the tasks as Slurm would.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from megadistill.core.schema import override
from megadistill.run.config import check
from megadistill.testing import slurm

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
SMALL = "train.steps=2 data.corpora.0.max_megabytes=1 evaluate.rows=32"
FEW_ROWS = "batch.global_size=4 batch.micro_size=2"
SMALLER = {
    "bash launch/quickstart.sh": f"{SMALL} {FEW_ROWS} train.steps=110 checkpoint.every_steps=60",
    "bash tools/test.sh": "tests/report",
    "megadistill prepare mine.yaml": SMALL,
    "megadistill train mine.yaml": SMALL,
    "megadistill train own.yaml": f"train.steps=3 evaluate.rows=16 {FEW_ROWS}",
    "bash tools/prepare_real.sh": "data.corpora.0.max_megabytes=1 data.corpora.1.max_megabytes=1",
    "python tools/simulate_order.py": "--tokens 2e9 --shards 2000 --audited-windows 1",
    "python tools/bench_data.py": "--megabytes 1 --rows 512 --repeats 1",
    "NPROC=2 bash launch/local.sh": SMALL,
    "srun ": SMALL,
    "source launch/env.sh && torchrun": SMALL,
    "source launch/env.sh && deepspeed": SMALL,
}
"""What is appended to the commands that begin so."""


def commands() -> list[tuple[str, str]]:
    """(command as written, what the test appends) of every line of every bash block."""
    found = []
    for block in re.findall(r"^```bash\n(.*?)^```", README.read_text(), flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.partition(" #")[0].strip()
            if command and not command.startswith("#"):
                words = [words for start, words in SMALLER.items() if command.startswith(start)]
                found.append((command, " ".join(words)))
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
    found = [command for command, _ in commands()]
    assert found[:2] == ["bash launch/quickstart.sh", "bash tools/test.sh"]
    assert [start for start in SMALLER if not any(command.startswith(start) for command in found)] == []


def test_every_link_of_the_readme_leads_to_a_heading() -> None:
    headings = re.findall(r"^## (.*)$", README.read_text(), flags=re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", README.read_text())) <= anchors


def test_the_readmes_task_of_ones_own_is_a_config_and_its_distillation_an_override() -> None:
    text = README.read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    config = next(block for block in blocks if "task:" in block)
    command = re.search(r"^megadistill train topics.yaml name=topics (.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert command is not None
    tree = override(yaml.safe_load(config), shlex.split(command[1].replace("\\\n", " ")))
    assert len(check(tree, "README").objectives) == 2


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
