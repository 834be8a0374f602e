"""Are bad steps told from good ones, and is a slow rank told from a fast one?"""

from __future__ import annotations

import math

import pytest

from megadistill.core.errors import Diverged
from megadistill.run.sections import TrainConfig
from megadistill.train.health import WINDOW, Health, RollBack, give_up, skipped, undone_from
from megadistill.train.ledger import Report
from megadistill.train.stragglers import STEPS, Stragglers


def report(step, loss, applied=True):
    return Report(step, {}, loss, None, 1, 1.0, 0.0, [1.0], 0.1, 1.0, applied, math.isfinite(loss), None)


def health(**settings):
    return Health(TrainConfig(steps=1, **settings))


def after_sound_steps(judge, steps=WINDOW):
    for step in range(steps):
        assert judge.judge(report(step, 2 + 0.01 * (step % 7))) == ""
    return judge


def test_spikes_in_a_row_are_undone_from_the_first_of_them():
    judge = after_sound_steps(health(spike_sigmas=6, spike_steps=3))
    assert judge.judge(report(200, 2.5)) == "spike"
    assert judge.judge(report(201, 2.0)) == ""
    assert judge.judge(report(202, 2.5)) == "spike"
    assert judge.judge(report(203, 2.5)) == "spike"
    with pytest.raises(RollBack) as caught:
        judge.judge(report(204, 2.5))
    assert (caught.value.first, caught.value.last) == (202, 204)
    assert max(judge.losses) < 2.1, "a spike must not become the measure of the next"


def test_nobody_looks_for_spikes_unasked_or_before_there_are_steps_to_compare_with():
    assert after_sound_steps(health()).judge(report(200, 1e9)) == ""
    assert after_sound_steps(health(spike_sigmas=6), WINDOW - 1).judge(report(200, 1e9)) == ""


def test_an_applied_update_that_was_not_finite_is_undone_at_once():
    with pytest.raises(RollBack):
        health().judge(report(1, math.nan))
    assert health().judge(report(1, math.nan, applied=False)) == "nonfinite"


def test_a_resumed_run_judges_as_it_would_have():
    judge, resumed = after_sound_steps(health(spike_sigmas=6)), health(spike_sigmas=6)
    resumed.restore(judge.state())
    assert resumed.losses == judge.losses
    assert resumed.judge(report(200, 2.5)) == "spike"


def test_what_the_journal_says_of_rollbacks():
    back = {"event": "rollback", "attempt": 1, "first": 5, "skips": [32, 64], "asked_for": False}
    events = [{"event": "start", "attempt": 1}, {"event": "save", "attempt": 1}, back]
    assert skipped(events) == [(32, 64)]
    assert undone_from(events) == 5
    assert undone_from([*events, {**back, "first": 9}]) == 5, "killed before it could go on, and asked once more"
    assert undone_from([*events, {"event": "save", "attempt": 1}]) == 5
    assert undone_from([*events, {"event": "resume", "attempt": 2}]) == math.inf
    rollback = RollBack(5, 8, "4 bad steps")
    give_up(rollback, events, 2, oldest=4)
    give_up(rollback, [back, {**back, "asked_for": True}], 2, oldest=4)
    with pytest.raises(Diverged, match="step 8: 4 bad steps"):
        give_up(rollback, [back, back], 2, oldest=4)
    with pytest.raises(Diverged, match="step 8: 4 bad steps"):
        give_up(rollback, [], 2, oldest=5)


def test_a_run_that_was_never_sound_is_not_told_to_keep_more_checkpoints():
    with pytest.raises(Diverged, match="the weights that training begins with") as caught:
        give_up(RollBack(1, 2, "2 bad steps"), [], 2, oldest=1)
    assert "checkpoint.keep" not in str(caught.value)
    give_up(RollBack(1, 1, "a bad step"), [], 2, oldest=0)  # from the beginning, without that step's data
    with pytest.raises(Diverged, match="keep more of them"):
        give_up(RollBack(2, 3, "2 bad steps"), [], 2, oldest=2)


def test_a_rollback_of_an_attempt_that_was_overtaken_is_not_the_runs():
    started, resumed = {"event": "start", "attempt": 1}, {"event": "resume", "attempt": 2}
    back = {"event": "rollback", "attempt": 1, "first": 5, "skips": [32, 64], "asked_for": False}
    assert undone_from([started, resumed, back]) == math.inf
    assert skipped([started, resumed, back]) == []
    give_up(RollBack(9, 9, "a bad step"), [started, resumed, back], 1, oldest=4)
    newer = {**back, "attempt": 2, "first": 7, "skips": [48, 64]}
    assert undone_from([started, resumed, back, newer, back]) == 7
    assert undone_from([started, resumed, newer, started]) == 7
    assert skipped([started, back, resumed, newer, back]) == [(32, 64), (48, 64)]


def test_a_rank_that_is_slow_for_long_is_named_once():
    watch = Stragglers()
    told = [watch.look([1.0, 1.1, 2.0, 0.9]) for _ in range(3 * STEPS)]
    assert [named for named in told if named] == [[(2, 2.0)]]
    assert told[STEPS - 1] == [(2, 2.0)]


def test_a_rank_that_is_slow_now_and_then_is_not():
    watch = Stragglers()
    assert not any(watch.look([1.0, 2.0] if step % STEPS else [1.0, 1.0]) for step in range(3 * STEPS))
