"""What a benchmark in turns says of two servers, and how sure it is."""

import pytest

from benchmarks.paired import added, figure, of_ours, ratio


def rounds(pairs, **lists):
    """One round a pair of throughputs, ours first."""
    return [({"per_second": ours, **lists}, {"per_second": plain}) for ours, plain in pairs]


def test_a_slow_minute_of_the_machine_that_hits_both_changes_no_ratio():
    got = figure(rounds([(80, 100), (8, 10), (40, 50), (160, 200)]), ratio("per_second"))
    assert (got.value, got.low, got.high) == pytest.approx((0.8, 0.8, 0.8))


def test_rounds_that_disagree_give_a_wide_interval_around_the_median():
    got = figure(rounds([(50, 100), (90, 100), (100, 100), (150, 100), (99, 100)]), ratio("per_second"))
    assert got.value == pytest.approx(0.99)
    assert got.low < 0.95
    assert got.high > 1.05


def test_quantiles_are_those_of_all_requests_of_all_rounds():
    pairs = [
        ({"latencies_ms": [10.0, 20.0]}, {"latencies_ms": [5.0, 7.0]}),
        ({"latencies_ms": [30.0]}, {"latencies_ms": [9.0]}),
    ]
    assert added(0.5)(pairs) == 13.0  # 20 against 7
    assert added(1.0)(pairs) == 21.0  # 30 against 9
    assert of_ours("decision_ms", 1.0)(rounds([(1, 1), (1, 1)], decision_ms=[1.0, 25.0])) == 25.0


def test_the_same_rounds_give_the_same_interval():
    measured = rounds([(n % 7 + 50, 60) for n in range(12)])
    assert figure(measured, ratio("per_second")) == figure(measured, ratio("per_second"))
