"""A decision is made again from its record, to the same choice; a record that was changed says so."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import GatewayError
from appliance.gateway import replaying
from appliance.gateway.decision import Deployment
from tests.unit.gateway.test_decider import LARGE, SMALL, SPARE, Bench, rollout


def stored(decision) -> dict:
    """The record as it leaves the gateway."""
    return json.loads(json.dumps(decision.as_dict()))


def again(record) -> replaying.Replayed:
    return replaying.replayed(*replaying.records(record))


REPLICAS = [Deployment("small-1", "m/small"), Deployment("small-2", "m/small"), LARGE]


@given(
    prompt=st.sampled_from(["easy", "hard", "close", "even", "", "explode"]),
    pool=st.sampled_from([[SMALL, LARGE], [SMALL, LARGE, SPARE], REPLICAS, [SPARE], [SMALL], []]),
    weight=st.one_of(st.none(), st.floats(0, 1)),
    before=st.integers(0, 5),
)
def test_whatever_was_decided_comes_out_again_from_the_record_alone(prompt, pool, weight, before):
    bench = Bench(weights={"small-1": 3}, costs={"small": 1.0, "large": 7.0, "small-2": 0.3}, cost_weight=0.1)
    for _ in range(before):
        bench.decide("even", pool)
    decision = bench.decide(prompt, pool, cost_weight=weight)
    made = again(stored(decision))
    assert made.same
    assert made.selected == decision.selected
    bench.pool.close()


def test_the_decisions_of_a_canary_are_made_again_like_any_other():
    bench = Bench(rollout=rollout(share=1.0))
    for decision in bench.many(["easy", "close", "even"] * 10):
        assert again(stored(decision)).same
    bench.pool.close()


@pytest.mark.parametrize(
    "change",
    [
        {"selected": "large"},
        {"scores": {"s": 0.1, "l": 0.2}},
        {"cost_weight": 1.0},
        {"labels": {"small": "l", "large": "s"}},
        {"scores": {"s": 0.5, "l": 0.5}},
    ],
)
def test_a_record_that_was_changed_comes_out_otherwise(change):
    bench = Bench(costs={"small": 10.0, "large": 1.0})
    assert not again({**stored(bench.decide("easy")), **change}).same
    bench.pool.close()


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({}, "request_id"),
        (5, "valid"),
        ({"decisions": 5}, "request_id"),
        ({"scores": {}}, "no score"),
        ({"labels": {}}, "which label"),
        ({"scores": {"s": "much"}}, "scores"),
    ],
)
def test_a_record_that_says_too_little_is_refused(record, says):
    bench = Bench()
    whole = stored(bench.decide("easy"))
    bench.pool.close()
    with pytest.raises(GatewayError, match=says) as refusal:
        again({**whole, **record} if isinstance(record, dict) and set(record) & {"scores", "labels"} else record)
    assert refusal.value.code == "GATEWAY_RECORD"


def test_router_and_prompt_of_the_record_score_alike_and_others_are_refused():
    bench = Bench()
    (record,) = replaying.records(stored(bench.decide("close")))
    serving = bench.slot.current
    made = replaying.rescored(record, serving, "close")
    assert (made.same, made.furthest) == (True, 0.0)
    with pytest.raises(GatewayError, match="another prompt"):
        replaying.rescored(record, serving, "close call")
    with pytest.raises(GatewayError, match="another router"):
        replaying.rescored(record.model_copy(update={"router_digest": "f" * 64}), serving, "close")
    (by_weight,) = replaying.records(stored(bench.decide("")))
    with pytest.raises(GatewayError, match="no router"):
        replaying.rescored(by_weight, serving, "")
    bench.pool.close()
