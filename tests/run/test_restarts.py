"""A scheduler does not restart for ever what gets nowhere."""

import pytest

from megadistill.core.errors import Exit
from megadistill.run.restarts import NoProgress, refuse_fruitless, restarted_by_scheduler


def event(attempt, name, **facts):
    return {"attempt": attempt, "event": name, **facts}


CRASHES = [event(n, "end", state="failed", error=f"RuntimeError: {n}") for n in (3, 4, 5)]


def test_restarts_without_a_checkpoint_end_with_the_last_error():
    with pytest.raises(NoProgress, match="the last 3 attempts wrote no checkpoint") as caught:
        refuse_fruitless([event(2, "save"), *CRASHES], attempt=6, limit=3)
    assert "RuntimeError: 5" in str(caught.value)
    assert caught.value.exit_code == Exit.NEVER_REQUEUE


@pytest.mark.parametrize("progress", [event(4, "save"), event(5, "signal"), event(4, "end", state=None)])
def test_a_checkpoint_a_signal_and_a_good_end_are_progress(progress):
    refuse_fruitless([event(2, "save"), *CRASHES[:1], progress], attempt=6, limit=3)


def test_an_attempt_that_was_killed_without_a_word_counts():
    refuse_fruitless([event(1, "save")], attempt=4, limit=3)
    with pytest.raises(NoProgress, match="they left no word"):
        refuse_fruitless([event(1, "save")], attempt=5, limit=3)
    with pytest.raises(NoProgress):
        refuse_fruitless([], attempt=4, limit=3)


def test_only_a_schedulers_restart_is_one():
    assert not restarted_by_scheduler({})
    assert not restarted_by_scheduler({"SLURM_RESTART_COUNT": "0"})
    assert restarted_by_scheduler({"SLURM_RESTART_COUNT": "1"})
