"""Memory that runs out, really: what is told, and whether a scheduler starts the run again."""

import re
from pathlib import Path

import pytest

from megadistill.core.files import read_lines
from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.testing import processes, workspace


@pytest.mark.distributed
@pytest.mark.parametrize(("at", "code"), [(1, 2), (12, 1)])
def test_the_largest_parts_are_named_and_what_to_do(tmp_path, at, code):
    """At once it is a setting to mend; after steps that went well, a crash that a restart may get over."""
    config = workspace.make(tmp_path)
    prepare(load(config).data, lambda line: None)
    settings = [f"objectives=[{{kind: hard_ce}}, {{kind: hungry, at: {at}}}]", "plugins=[hungry_objective]"]
    environ = {"PYTHONPATH": str(Path(__file__).parent)}
    done = processes.megadistill("train", config, *settings, environ=environ)
    assert done.returncode == code, done.stdout + done.stderr
    told = done.stderr[done.stderr.index("memory ran out on rank 0") :]
    assert re.match(r"memory ran out on rank 0 in step \d+\n", told)
    assert "tried to allocate 1125899906842624 bytes" in told
    assert "planned for a GPU: " in told
    assert "fix: halve batch.micro_size" in told
    end = read_lines(config.parent / "runs" / "tiny" / "journal.jsonl")[-1]
    assert end["event"] == "end"
    assert "memory ran out" in end["error"]
