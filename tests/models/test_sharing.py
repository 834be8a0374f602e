"""What several ranks of one machine read, hold and download of the same model: each of it once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megadistill.models.loading import save_pretrained
from megadistill.testing import tiny
from megadistill.testing.hub import COMMIT, serving

pytestmark = pytest.mark.distributed
HOLDS = """
import sys, torch
from megadistill.models.loading import load_pretrained
def held():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    table = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines[1:]}
    return table["Private_Clean"] + table["Private_Dirty"], table["Rss"]
load_pretrained(sys.argv[1])  # what loading itself needs is there from here on
before = held()
model = load_pretrained(sys.argv[2])
total = sum(float(p.detach().sum()) for p in model.parameters())  # every page has been read
print("loaded", flush=True)
sys.stdin.readline()  # both are
after = held()
print(after[0] - before[0], after[1] - before[1], sum(p.nbytes for p in model.parameters()), total, flush=True)
sys.stdin.readline()  # both have looked
"""
DOWNLOADS = """
import sys
from megadistill.models.loading import load_pretrained
print(float(sum(p.detach().double().sum() for p in load_pretrained("some/model").parameters())))
"""


def save(folder, **sizes):
    model = tiny.language_model("bert", 2, **sizes)
    save_pretrained(model, folder, {name: p.detach() for name, p in model.named_parameters()})


def test_two_ranks_hold_one_copy_of_weights_that_are_stored_as_they_are_used(tmp_path):
    save(tmp_path / "small")
    save(tmp_path / "large", hidden_size=512, intermediate_size=2048, vocab_size=4096)
    command = [sys.executable, "-c", HOLDS, str(tmp_path / "small"), str(tmp_path / "large")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    ranks = [subprocess.Popen(command, **pipes) for _ in range(2)]
    for rank in ranks:
        assert rank.stdout.readline() == "loaded\n"
    for rank in ranks:
        rank.stdin.write("look\n")
        rank.stdin.flush()
    found = [rank.stdout.readline().split() for rank in ranks]
    assert [rank.communicate("go\n") and rank.returncode for rank in ranks] == [0, 0]
    for private, resident, size, _ in found:
        assert int(size) > 30e6
        assert int(resident) > 0.9 * int(size), "it is in memory"
        assert int(private) < 0.2 * int(size), "and the other rank's pages are the same"
    assert found[0][2:] == found[1][2:]


def test_two_ranks_download_a_model_once(tmp_path):
    save(tmp_path / "hub" / "some" / "model")
    with serving(tmp_path / "hub") as hub:
        environ = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", DOWNLOADS]
        ranks = [subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        sums = [rank.communicate()[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert sums[0] == sums[1]
    assert hub.asked["GET", "model.safetensors"] == 1
    assert hub.asked["GET", "config.json"] == 1
    assert next(Path(tmp_path / "home").rglob(f"snapshots/{COMMIT}/model.safetensors")).exists()
