"""How `batch.micro_size: auto` searches, whatever the memory is like."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from megadistill.train.micro_size import Need, largest

SHARES = st.integers(1, 720)
BYTES = st.integers(0, 10_000)


def divisors(share):
    return [n for n in range(1, share + 1) if share % n == 0]


class Machine:
    """Passes of n rows take `fixed + n x each`, the update `update`."""

    def __init__(self, fixed, each, update, fails_from=10**9):
        self.fixed, self.each, self.update, self.fails_from = fixed, each, update, fails_from
        self.tried = []

    def needs(self, rows):
        return max(self.fixed + self.each * rows, self.update)

    def probe(self, rows):
        self.tried.append(rows)
        return None if rows >= self.fails_from else Need(self.fixed + self.each * rows, self.needs(rows))


@given(SHARES, BYTES, st.integers(1, 100), BYTES, BYTES)
def test_it_finds_the_largest_that_fits(share, fixed, each, update, room):
    machine = Machine(fixed, each, update)
    wanted = max((n for n in divisors(share) if machine.needs(n) <= room + 0.5), default=0)
    assert largest(divisors(share), machine.probe, room + 0.5, dares=True) == wanted
    assert len(set(machine.tried)) == len(machine.tried) <= 2 + 2 * share.bit_length()


@given(SHARES, BYTES, st.integers(1, 100), BYTES, BYTES)
def test_where_too_much_would_be_a_kill_nothing_is_tried_that_does_not_fit(share, fixed, each, update, room):
    machine = Machine(fixed, each, update)
    found = largest(divisors(share), machine.probe, room + 0.5, dares=False)
    first, *later = machine.tried
    assert all(machine.needs(rows) <= room + 0.5 for rows in later)
    assert found == (max(machine.tried) if machine.needs(first) <= room + 0.5 else 0)


@pytest.mark.parametrize(("fails_from", "found"), [(1, 0), (2, 1), (16, 8), (33, 32)])
def test_a_step_that_runs_out_of_memory_against_all_expectations_ends_the_search(fails_from, found):
    assert largest(divisors(64), Machine(0, 1, 0, fails_from).probe, room=32, dares=True) == found


@given(SHARES, BYTES, st.integers(1, 100), st.floats(0.5, 1), st.lists(st.sampled_from([-0.05, 0.05]), min_size=9))
@example(256, 5_000, 1_550, 0.9, [0, 0, 0, 0, 0.05, -0.05, 0, 0])
def test_what_is_measured_a_little_wrong_leads_to_nothing_far_beyond_the_room(share, fixed, each, room, wrong):
    machine = Machine(fixed, each, 0)
    room *= machine.needs(64)

    def probe(rows):
        told = machine.probe(rows).passes * (1 + wrong[(len(machine.tried) - 1) % len(wrong)])
        return Need(told, told)

    largest(divisors(share), probe, room, dares=False, off=0.05)
    _, *later = machine.tried
    assert all(machine.needs(rows) * 0.95 <= room for rows in later)
