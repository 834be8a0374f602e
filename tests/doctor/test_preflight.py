"""Are unfit nodes of a job found, named, and told from sound ones?"""

from __future__ import annotations

import pytest

from megadistill.data.prepare import prepare
from megadistill.doctor.links import rounds
from megadistill.doctor.preflight import judge, table
from megadistill.run.config import load
from megadistill.testing import processes, workspace


def fact(rank, host, **changes):
    sound = {
        "rank": rank,
        "host": host,
        "device": "a GPU",
        "gpus": 4,
        "software": {"torch": "2.13.0", "megadistill sources": "abc"},
        "config": "c0ffee",
        "matmul": "1234",
        "busy_memory": 0.01,
        "rows": "5678",
        "disk": "/runs",
        "disk_free_gb": 100.0,
        "inodes_free": 10**6,
        "write_seconds": 0.01,
        "write_problem": "",
        "clock": 1000.0,
    }
    return {**sound, **changes}


def job(**changes):
    """Three hosts with two ranks each; `b` differs."""
    return [fact(rank, "aabbcc"[rank], **(changes if rank in (2, 3) else {})) for rank in range(6)]


def test_sound_nodes_are_fit():
    verdict = judge(job())
    assert not verdict.problems
    assert "fit to train" in table(verdict)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"gpus": 3}, "number of GPUs: 3, elsewhere 4"),
        ({"software": {"torch": "2.12.0", "megadistill sources": "abc"}}, "torch: 2.12.0, elsewhere 2.13.0"),
        ({"software": {"torch": "2.13.0", "megadistill sources": "old"}}, "megadistill sources: old"),
        ({"config": "other"}, "config: other"),
        ({"matmul": "4321"}, "result of a bf16 matrix product: 4321"),
        ({"rows": "unreadable: no shards"}, "rows read from the data: unreadable: no shards"),
        ({"clock": 1060.0}, "its clock is +60 s off"),
        ({"busy_memory": 0.5}, "rank 2's GPU has 50% of its memory in use"),
        ({"write_problem": "Read-only file system"}, "cannot write to /runs: Read-only file system"),
        ({"device": "an older GPU", "matmul": "other"}, "device: an older GPU"),
    ],
)
def test_a_host_that_differs_is_named(changes, told):
    verdict = judge(job(**changes))
    assert verdict.bad_hosts == ["b"]
    assert told in verdict.problems["b"][0]
    assert "leave out: b" in table(verdict)


def test_where_nobody_is_most_the_job_is_to_blame():
    verdict = judge([fact(0, "a"), fact(1, "b", config="other")])
    assert verdict.bad_hosts == []
    assert verdict.problems[""] == ["config differs: c0ffee on a; other on b"]


@pytest.mark.parametrize(("what", "told"), [("disk_free_gb", "GB left"), ("inodes_free", "inodes left")])
def test_a_full_shared_disk_is_nobodys_fault(what, told):
    verdict = judge([fact(rank, host, **{what: 0}) for rank, host in enumerate("abc")])
    assert verdict.bad_hosts == []
    assert told in verdict.problems[""][0]


@pytest.mark.parametrize("number", [2, 3, 4, 5, 8])
def test_every_host_meets_others_in_pairs(number):
    hosts = [f"node{index}" for index in range(number)]
    met = {host: set() for host in hosts}
    for pairs in rounds([*hosts, *hosts]):
        together = [host for pair in pairs for host in pair]
        assert len(together) == len(set(together)), "a host is in two pairs at once"
        for a, b in pairs:
            met[a].add(b)
            met[b].add(a)
    assert all(len(partners) >= min(2, number - 1) for partners in met.values())


@pytest.mark.distributed
def test_real_ranks_are_compared_and_missing_ones_named(tmp_path):
    config = workspace.make(tmp_path)
    prepare(load(config).data, lambda line: None)
    command = ["-m", "megadistill", "doctor", str(config), "--ranks"]
    out = processes.run(command, 2)[0]
    assert "all-reduce over 2 ranks:" in out
    assert "fit to train" in out

    slow = processes.launch([*command, "--least", "1000"], 2)
    told = slow[0].communicate(timeout=120)[0]
    assert [rank.wait() for rank in slow] == [2, 2]
    assert "all-reduce is slower than 1000.0 GB/s" in told

    alone = processes.launch([*command, "--wait", "3"], 2)
    alone[1].kill()
    told = alone[0].communicate(timeout=120)[0]
    alone[1].communicate()
    assert alone[0].returncode == 2
    assert "rank(s) 1 did not come" in told


def test_it_needs_a_config():
    done = processes.megadistill("doctor", "--ranks")
    assert done.returncode == 2
    assert "no config was named" in done.stderr
