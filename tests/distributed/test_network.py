"""Two hosts (network namespaces) with a real link that is cut and mended: found in time, with stacks, and resumed."""

import os
import subprocess
import sys
import time

import pytest

from megadistill.core.files import read_lines
from megadistill.data.prepare import prepare
from megadistill.run.config import load
from megadistill.testing import processes, workspace
from megadistill.testing.traces import trace

pytestmark = [pytest.mark.soak, pytest.mark.distributed]
HOSTS = ("mdhost0", "mdhost1")
HANG_SECONDS = 20


def ip(*arguments, check=True):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=check)


@pytest.fixture
def link():
    """A cable between two hosts; its end in the first one."""
    try:
        possible = ip("netns", "add", HOSTS[0], check=False).returncode == 0
    except FileNotFoundError:
        possible = False
    if not possible:
        pytest.skip("network namespaces need iproute2 and root")
    try:
        ip("netns", "add", HOSTS[1])
        ip("link", "add", "mdlink0", "type", "veth", "peer", "name", "mdlink1")
        for number, host in enumerate(HOSTS):
            ip("link", "set", f"mdlink{number}", "netns", host)
            ip("-n", host, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"mdlink{number}")
            ip("-n", host, "link", "set", f"mdlink{number}", "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield ("-n", HOSTS[0], "link", "set", "mdlink0")
    finally:
        for host in HOSTS:
            ip("netns", "del", host, check=False)


def launch(config, *settings):
    """One rank on each host."""
    ranks = []
    for rank, host in enumerate(HOSTS):
        world = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "10.77.0.1"}
        environ = {**os.environ, **world, "MASTER_PORT": "29511", "GLOO_SOCKET_IFNAME": f"mdlink{rank}"}
        command = ["ip", "netns", "exec", host, sys.executable, "-m", "megadistill", "train", str(config), *settings]
        ranks.append(
            subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    return ranks


def test_a_cut_link_ends_the_run_in_time_and_a_mended_one_lets_it_go_on(tmp_path, link):
    config = workspace.make(tmp_path)
    prepare(load(config).data, lambda line: None)
    settings = ["train.steps=200", f"train.hang_seconds={HANG_SECONDS}", "checkpoint.every_steps=16"]
    processes.run(["-m", "megadistill", "train", str(config), "name=whole", *settings], 2)
    run = tmp_path / "runs" / "cut"
    ranks = launch(config, "name=cut", *settings)
    try:
        deadline = time.monotonic() + 120
        while len(trace(run)) < 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(trace(run)) < 200, "too fast for this test"
        ip(*link, "down")
        cut = time.monotonic()
        for rank in ranks:
            rank.communicate(timeout=6 * HANG_SECONDS)
        assert time.monotonic() - cut < 3 * HANG_SECONDS
        assert all(rank.returncode == 1 for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    stacks = [(run / "logs" / f"hung-a0001-rank-{rank:04d}.txt").read_text() for rank in range(2)]
    assert all("most recent call first" in text and "loop.py" in text for text in stacks)

    ip(*link, "up")
    ranks = launch(config, "name=cut", *settings)
    outputs = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(outputs)
    assert trace(run) == trace(tmp_path / "runs" / "whole")
    assert [row["ranks"] for row in read_lines(run / "journal.jsonl") if row["event"] == "hang"] == [[0, 1]]
