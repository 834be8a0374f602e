"""`batch.micro_size: auto` where memory is really limited: it holds, is kept, and is the same on all ranks."""

import json
import re
from pathlib import Path

import pytest

from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.testing import processes, workspace
from megadistill.testing.traces import trace

pytestmark = pytest.mark.distributed
SIZES = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 2, "intermediate_size": 512}
ROWS = 256
"""Of a step and rank; a quarter to half of them fit into 200 MB."""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = workspace.make(
        tmp_path_factory.mktemp("workspace"),
        teacher=None,
        student={
            "kind": "hf",
            "architecture": "bert",
            "config": {**SIZES, "max_position_embeddings": workspace.LENGTH},
        },
        objectives=[{"kind": "hard_ce"}],
        batch={"global_size": ROWS, "micro_size": "auto"},
        engine={"reduce_bucket_mib": 1, "allgather_bucket_mib": 1},
    )
    prepare(load(path).data, lambda line: None)
    return path


def train(config, name, tight, *more, ranks=1, second="tight", **environ):
    """Exit codes and all that was said, where ranks may take `tight` megabytes beside their models."""
    objectives = f"objectives=[{{kind: hard_ce}}, {{kind: {second}}}]"
    given = [f"name={name}", objectives, *more]
    command = [
        "-m",
        "megadistill",
        "train",
        str(config),
        "plugins=[tight_objective, hungry_objective]",
        "schedule.total_steps=4",
        *given,
    ]
    started = processes.launch(command, ranks, {"PYTHONPATH": str(Path(__file__).parent), "TIGHT": tight, **environ})
    said = [process.communicate(timeout=120)[0] for process in started]
    return [process.returncode for process in started], "\n".join(said)


def kept(config, name):
    return json.loads((config.parent / "runs" / name / "run.json").read_text())["micro_size"]


def test_it_is_measured_once_kept_and_leaves_no_trace(config):
    codes, said = train(config, "auto", "200", "train.steps=2", "checkpoint.every_steps=2")
    assert codes == [0], said
    rows = kept(config, "auto")
    assert 16 <= rows < ROWS, said
    assert f"batch.micro_size: auto is {rows} (1 rows: " in said
    assert f"accumulation {ROWS // rows} = {ROWS} / ({rows} x 1 ranks)" in said
    codes, said = train(config, "auto", "4000", "train.steps=4")
    assert codes == [0], said
    assert "micro_size: auto" not in said, "there is room for more now, and the run keeps what it has"
    assert "not bitwise" not in said
    assert kept(config, "auto") == rows
    codes, said = train(config, "given", "4000", "train.steps=4", f"batch.micro_size={rows}")
    assert codes == [0], said
    runs = config.parent / "runs"
    assert f"next: megadistill train {runs / 'given' / 'config.yaml'} 'train.more_steps=[4]'\n" in said
    assert trace(runs / "auto") == trace(runs / "given")


def test_ranks_agree_on_what_the_tightest_can_take(config):
    codes, said = train(config, "two", "4000 150", "train.steps=2", f"batch.global_size={2 * ROWS}", ranks=2)
    assert codes == [0, 0], said
    assert 8 <= kept(config, "two") < ROWS, said
    free = float(re.search(r"([\d.]+) GB were free to use", said)[1])
    assert 0.03 < free < 0.15, said


@pytest.mark.parametrize(
    ("told", "how"),
    [
        ("memory ran out on rank 0 before the first step\n  tried to allocate 1125899906842624 bytes", "hungry, at: 1"),
        ("not even the smallest micro-batch fits into memory\n  1 rows: 0.", "tight"),
    ],
)
def test_not_even_one_row_is_told_with_what_to_do_and_nothing_is_written(config, told, how):
    codes, said = train(config, "none", "4000", second=how, USABLE="1e-9")
    assert codes == [2], said
    assert told in said
    assert "planned for a GPU: " in said
    assert "fix: set engine.activation_checkpointing: true" in said
    assert not (config.parent / "runs" / "none").exists()
