"""Runs side by side: so many, in order, each with its share; and what fails keeps others from beginning."""

import threading

import pytest

from megadistill.evaluate.jobs import shares, side_by_side


def test_so_many_are_at_work_and_answers_come_in_order(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    meeting = threading.Barrier(2, timeout=30)  # nobody passes alone
    lock, busy, most = threading.Lock(), set(), []

    def work(item, share):
        with lock:
            assert share["CUDA_VISIBLE_DEVICES"] not in busy
            busy.add(share["CUDA_VISIBLE_DEVICES"])
            most.append(len(busy))
        meeting.wait()
        with lock:
            busy.remove(share["CUDA_VISIBLE_DEVICES"])
        return item * 10

    assert list(side_by_side(work, range(6), 2)) == [0, 10, 20, 30, 40, 50]
    assert max(most) == 2


def test_one_alone_has_all_and_several_share_what_they_may_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert shares(1) == [{}]
    assert shares(4) == [{"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "3"}] * 4
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert shares(2) == [{"OMP_NUM_THREADS": "3"}] * 2


def test_after_a_failure_none_begins():
    begun = []

    def work(item, share):
        begun.append(item)
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        list(side_by_side(work, range(50), 1))
    assert len(begun) < 50
