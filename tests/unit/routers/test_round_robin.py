"""Smooth weighted round-robin: exact shares, evenly spread, whatever the threads and the membership do."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.errors import RouterError
from appliance.routers.round_robin import SmoothWeightedRoundRobin


def test_weights_are_met_exactly_and_spread_as_nginx_spreads_them():
    turns = SmoothWeightedRoundRobin({"g": {"a": 5, "b": 1, "c": 1}})
    assert "".join(turns.choose("g", ["a", "b", "c"]) for _ in range(7)) == "aabacaa"


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1))
def test_over_one_period_each_is_chosen_by_its_weight(weights):
    turns = SmoothWeightedRoundRobin({"g": weights})
    chosen = Counter(turns.choose("g", list(weights)) for _ in range(sum(weights.values())))
    assert chosen == Counter(weights)


def test_groups_have_their_own_turns():
    turns = SmoothWeightedRoundRobin()
    assert [turns.choose(group, ["a", "b"]) for group in ("x", "y", "x", "y")] == ["a", "a", "b", "b"]


def test_who_returns_neither_bursts_nor_starves():
    turns = SmoothWeightedRoundRobin()
    for _ in range(1000):
        assert turns.choose("g", ["a"]) == "a"
    after = [turns.choose("g", ["a", "b"]) for _ in range(10)]
    assert Counter(after) == {"a": 5, "b": 5}


def test_candidates_that_alternate_keep_their_shares():
    turns = SmoothWeightedRoundRobin()
    chosen = Counter()
    for number in range(300):
        chosen[turns.choose("g", ["a", "b"] if number % 2 else ["b", "c"])] += 1
    assert chosen == {"a": 75, "b": 150, "c": 75}  # half of every pair


def test_weight_zero_is_chosen_only_where_nothing_else_is_left():
    turns = SmoothWeightedRoundRobin({"g": {"spare": 0}})
    assert {turns.choose("g", ["a", "spare"]) for _ in range(20)} == {"a"}
    assert turns.choose("g", ["spare"]) == "spare"


def test_many_threads_together_meet_the_weights_exactly():
    turns = SmoothWeightedRoundRobin({"g": {"a": 3, "b": 1}})
    with ThreadPoolExecutor(8) as pool:
        chosen = Counter(pool.map(lambda _: turns.choose("g", ["a", "b"]), range(4000)))
    assert chosen == {"a": 3000, "b": 1000}


def test_new_weights_apply_at_once():
    turns = SmoothWeightedRoundRobin({"g": {"a": 1, "b": 1}})
    turns.choose("g", ["a", "b"])
    turns.configure({"g": {"a": 0, "b": 1}})
    assert {turns.choose("g", ["a", "b"]) for _ in range(5)} == {"b"}


@pytest.mark.parametrize("weight", [-1, 1.5, True, "2", 1_000_001])
def test_a_weight_that_is_no_whole_number_is_refused(weight):
    with pytest.raises(RouterError) as refused:
        SmoothWeightedRoundRobin({"g": {"a": weight}})
    assert refused.value.code == "ROUTER_WEIGHT"


def test_no_candidates_is_a_refusal():
    with pytest.raises(RouterError) as refused:
        SmoothWeightedRoundRobin().choose("g", [])
    assert refused.value.code == "ROUTER_NO_CANDIDATES"
