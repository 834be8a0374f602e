"""What is read back is what was written, nothing foreign is run, and nothing secret or private leaks out of a run."""

import os
import pickle
import random
import stat

import pytest

from megadistill.data.prepare import prepare
from megadistill.engine import checkpoint
from megadistill.run.config import load
from megadistill.testing import processes, workspace

SECRET = "hf_thisIsNobodysToken0123456789"
SECRETS = {"HF_TOKEN": SECRET, "WANDB_API_KEY": SECRET}


def train(config, *assignments):
    before = os.umask(0o027)
    try:
        return processes.megadistill("train", config, "batch.micro_size=16", *assignments, environ=SECRETS)
    finally:
        os.umask(before)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = workspace.make(tmp_path_factory.mktemp("workspace"))
    prepare(load(path).data, lambda line: None)
    done = train(path, "train.steps=4", "schedule.total_steps=6", "checkpoint.every_steps=2", "checkpoint.keep=3")
    assert done.returncode == 0, done.stdout + done.stderr
    return path


@pytest.fixture(scope="module")
def run(config):
    return config.parent / "runs" / "tiny"


def test_tokens_of_the_environment_are_written_nowhere(run):
    files = [file for file in run.rglob("*") if file.is_file()]
    assert len(files) > 20
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []


def test_files_are_as_open_as_the_umask_says(run):
    modes = {oct(stat.S_IMODE(path.stat().st_mode)) for path in run.rglob("*") if path.is_file()}
    assert modes == {"0o640", "0o740"}, "0o740: DeepSpeed's recovery scripts"


def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_found_and_named(run):
    _, _, path = checkpoint.committed(run / "checkpoints")[0]
    draw = random.Random(0)
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.stat().st_size)
    assert {file.suffix for file in files} >= {".json", ".pt", ".safetensors", ".py"}
    for file in files:
        sound = file.read_bytes()
        for _ in range(40 if file.name == checkpoint.MANIFEST else 4):
            place = draw.randrange(8 * len(sound))
            flipped = bytearray(sound)
            flipped[place // 8] ^= 1 << place % 8
            file.write_bytes(flipped)
            found = checkpoint.damage(path)
            assert len(found) == 1, (file, place)
            assert file.name in found[0]
        file.write_bytes(sound)
    assert checkpoint.damage(path) == []


class Intruder:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_what_does_not_verify_is_never_unpickled(config, run, tmp_path):
    _, _, path = checkpoint.committed(run / "checkpoints")[0]
    for file in (path / "deepspeed").glob("*.pt"):
        file.write_bytes(pickle.dumps(Intruder(tmp_path / "was here")))
    done = train(config, "train.steps=6")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "damaged" in done.stdout + done.stderr
    assert "continuing at step 2" in done.stdout + done.stderr
    assert not (tmp_path / "was here").exists()
