"""The breaker: closed, open, half-open."""

import pytest

from appliance.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return Breaker(failures=3, open_s=10, probes=2, open_max_s=40, clock=clock)


def fail(breaker, times: int) -> None:
    for _ in range(times):
        breaker.failure("late")


def test_failures_in_a_row_open_it_and_a_success_between_starts_the_count_again(breaker):
    fail(breaker, 2)
    breaker.success()
    fail(breaker, 2)
    assert breaker.allow()
    breaker.failure("late")
    assert not breaker.allow()
    assert breaker.view().state == "open"
    assert breaker.view().last_reason == "late"


def test_after_the_pause_one_probe_at_a_time_passes(breaker, clock):
    fail(breaker, 3)
    clock.now = 9.9
    assert not breaker.allow()
    clock.now = 10
    assert breaker.would_allow()
    assert breaker.allow()
    assert not breaker.would_allow()
    assert not breaker.allow()
    breaker.success()
    assert breaker.view().state == "half-open"
    assert breaker.allow()
    breaker.success()
    assert breaker.view().state == "closed"


def test_a_call_that_went_for_want_of_another_counts_as_a_probe_where_it_went_well(breaker):
    fail(breaker, 3)
    breaker.success()
    assert breaker.view().state == "open", "what had begun before it opened says nothing"
    breaker.insist()
    breaker.failure("late")
    assert breaker.view().state == "open"
    breaker.success()
    assert breaker.view().state == "half-open"
    assert breaker.allow()
    breaker.success()
    assert breaker.view().state == "closed"


def test_a_failed_probe_opens_it_for_twice_as_long_up_to_the_limit(breaker, clock):
    fail(breaker, 3)
    waits = []
    for _ in range(4):
        clock.now += breaker.view().retry_in_s
        assert breaker.allow()
        breaker.failure("still")
        waits.append(breaker.view().retry_in_s)
    assert waits == [20, 40, 40, 40]


def test_a_probe_that_was_not_used_gives_its_place_back(breaker, clock):
    fail(breaker, 3)
    clock.now = 10
    assert breaker.allow()
    breaker.unused()
    assert breaker.allow()


def test_a_probe_that_never_reports_does_not_hold_the_door_for_ever(breaker, clock):
    fail(breaker, 3)
    clock.now = 10
    assert breaker.allow()
    clock.now = 20
    assert breaker.allow()


def test_reset_closes_it(breaker):
    fail(breaker, 3)
    breaker.reset()
    assert breaker.allow()
    assert breaker.view().failures_in_a_row == 0
