"""The figures of the field, against RouteLLM's own procedure and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.training.bootstrap import intervals
from appliance.training.metrics import best_single, choice_metrics, pair_metrics, strong_curve


def by_routellm(win_rate, weak, strong, bins=10):
    """RouteLLM's evaluate.py and benchmarks.py, step by step, in plain Python."""
    edges = np.quantile(win_rate, np.linspace(0, 1, bins + 1))
    points = []
    for index, edge in enumerate(edges):
        chosen = win_rate >= edge if index < bins else win_rate > edge
        points.append((chosen.mean() * 100, np.where(chosen, strong, weak).mean() * 100))
    points.sort(key=lambda point: point[0])
    x, y = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    low, high = weak.mean() * 100, strong.mean() * 100
    area = lambda values: np.trapezoid(values, x / 100)  # noqa: E731
    flat = np.ones_like(x)
    apgr = (area(y) - area(low * flat)) / (area(high * flat) - area(low * flat))
    return {"apgr": apgr, **{f"cpt{c}": np.interp(c / 100 * (high - low) + low, y, x) for c in (20, 50, 80)}}


@settings(deadline=None, max_examples=60)
@given(st.integers(20, 200), st.integers(0, 2**32 - 1), st.booleans())
def test_apgr_and_cpt_are_routellms(count, seed, coarse):
    generator = np.random.default_rng(seed)
    weak, strong = 0.6 * generator.random(count), generator.random(count)  # no two points of the curve tie
    win_rate = generator.random(count)
    if coarse:
        win_rate = np.round(win_rate, 1)
    if strong.mean() <= weak.mean():
        return
    expected = by_routellm(win_rate, weak, strong)
    assert pair_metrics(win_rate, weak, strong) == pytest.approx(expected, nan_ok=True, abs=1e-9)


def test_a_perfect_ranking_is_near_the_top_and_a_reversed_one_near_the_bottom():
    gain = np.array([1.0] * 20 + [0.0] * 80)
    weak, strong = np.zeros(100), gain
    assert pair_metrics(gain + np.linspace(0, 0.1, 100)[::-1], weak, strong)["apgr"] > 0.89
    assert pair_metrics(-gain, weak, strong)["apgr"] < 0.2


def test_a_constant_score_is_no_better_than_a_coin():
    generator = np.random.default_rng(0)
    weak, strong = np.zeros(1000), (generator.random(1000) < 0.5).astype(float)
    assert pair_metrics(np.ones(1000), weak, strong)["apgr"] == pytest.approx(0.5)


def test_without_a_gap_the_pair_figures_are_unknown():
    assert np.isnan(pair_metrics(np.arange(10.0), np.ones(10), np.ones(10))["apgr"])


def test_the_curve_runs_from_the_weak_model_to_the_strong():
    generator = np.random.default_rng(0)
    weak, strong = generator.random(50), generator.random(50)
    shares, accuracy = strong_curve(generator.random(50), weak, strong)
    assert (shares[0], shares[-1]) == (0, 1)
    assert (accuracy[0], accuracy[-1]) == pytest.approx((weak.mean(), strong.mean()))


def test_choices_against_the_best_single_and_the_oracle():
    actual = np.array([[1, 0], [1, 0], [0, 1], [1, 1]], float)
    perfect = choice_metrics(actual, actual, best_single(actual))
    assert perfect == pytest.approx(
        {"accuracy": 1, "best_single": 0.75, "oracle": 1, "gap_closed": 1, "gain_over_best_single": 0.25}
    )
    fixed = choice_metrics(np.tile([1.0, 0.0], (4, 1)), actual, 0)
    assert fixed["gap_closed"] == 0


def test_a_model_that_was_not_scored_cannot_be_chosen():
    actual = np.array([[np.nan, 0.3], [0.5, np.nan]])
    assert choice_metrics(np.array([[9.0, 0.0], [0.0, 9.0]]), actual, 0)["accuracy"] == pytest.approx(0.4)


def test_an_interval_covers_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        values = np.random.default_rng(seed).normal(0, 1, 80)
        low, high = intervals(lambda r, v=values: {"m": float(v[r].mean())}, np.arange(80), resamples=300)["m"]
        covered += low <= 0 <= high
    assert 51 <= covered <= 60


def test_copies_of_a_prompt_do_not_narrow_the_interval():
    values = np.random.default_rng(0).normal(0, 1, 50)
    once = intervals(lambda r: {"m": float(values[r].mean())}, np.arange(50))["m"]
    copied = np.repeat(values, 10)
    groups = np.repeat(np.arange(50), 10)
    grouped = intervals(lambda r: {"m": float(copied[r].mean())}, groups)["m"]
    pretended = intervals(lambda r: {"m": float(copied[r].mean())}, np.arange(500))["m"]
    assert (grouped[1] - grouped[0]) == pytest.approx(once[1] - once[0], rel=0.15)
    assert (pretended[1] - pretended[0]) < 0.5 * (once[1] - once[0])


def test_the_same_seed_gives_the_same_interval():
    measure = lambda r: {"m": float(r.mean())}  # noqa: E731
    assert intervals(measure, np.arange(30)) == intervals(measure, np.arange(30))
    assert intervals(measure, np.arange(30), seed=1) != intervals(measure, np.arange(30))
