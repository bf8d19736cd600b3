"""Traffic answers each prompt once: routers are fitted on it, measured and gated without making up what nobody saw."""

import json

import numpy as np
import pytest

from appliance.errors import TrainingError
from appliance.routers.families.ensemble import Calibration, Ensemble
from appliance.routers.families.linear import Ridge
from appliance.routers.strategies import Prompts
from appliance.training.bootstrap import intervals
from appliance.training.calibrating import abstention, calibrated, calibration_error, crossed_calibration
from appliance.training.evaluate import evaluate_scores
from appliance.training.fit import fit
from appliance.training.latency import answer_latency, decision_latency
from appliance.training.outcomes import Outcome, from_outcomes
from appliance.training.package import judge
from appliance.training.preparing import prepare
from appliance.training.reward_model import chances, is_logged, predicted_rewards, pseudo_outcomes
from appliance.training.selection import figure_of
from tests.support.training import examples, rows, tiny_encoder


def logged(count=600, *, share=0.5, seed=0):
    """Each prompt answered by one of two models; the second, which fails on hard prompts, with chance `share`."""
    generator = np.random.default_rng(seed)
    made = []
    for row in rows(count, seed=seed):
        model = "m1" if generator.random() < share else "m0"
        score = float(row["scores"]["m1"]) if model == "m1" else 0.6
        chance = share if model == "m1" else 1 - share
        made.append(Outcome(query=row["query"], scores={model: score}, propensity=chance))
    return made


def seen(outcomes):
    return prepare(from_outcomes(outcomes), tiny_encoder(), cache=None)


def test_estimates_of_a_models_mean_are_right_though_the_traffic_favoured_the_other():
    dataset = from_outcomes(logged(2000, share=0.15))
    data = seen(logged(2000, share=0.15))
    full = from_outcomes(Outcome.model_validate(row) for row in rows(2000))
    assert is_logged(dataset.scores)
    column = data.labels.index("m1")
    truth = full.scores[:, full.models.index("m1")].mean()
    assert data.actual[:, column].mean() == pytest.approx(truth, abs=0.03)


def test_a_router_fitted_on_traffic_beats_the_best_single_and_the_gate_sees_it():
    made = fit(seen(logged(600)), strategy="knn")
    aside = seen(logged(500, seed=9))
    predicted = made.strategy.scores(aside.prompts)
    report = evaluate_scores(predicted, aside)
    # truth: 0.9 on easy prompts by m1, 0.6 on hard ones by m0
    assert report["accuracy"] == pytest.approx(0.75, abs=0.05)
    assert report["outcomes"].startswith("logged")
    assert report["oracle"] is None
    assert report["gap_closed"] is None
    assert judge(predicted, aside.actual, aside.groups, baseline=None).passed


def test_a_router_of_chance_does_not_pass_on_traffic():
    aside = seen(logged(500, seed=9))
    chance = np.random.default_rng(0).random(aside.scores.shape)
    assert not judge(chance, aside.actual, aside.groups, baseline=None).passed


def test_no_prompts_expectation_comes_from_a_model_that_saw_its_outcome():
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((200, 190))  # enough directions to learn every outcome by heart
    scores = (generator.random((200, 1)) < 0.5).astype(float)
    expected = predicted_rewards(vectors, scores, np.arange(200))
    assert abs(np.corrcoef(expected[:, 0], scores[:, 0])[0, 1]) < 0.2
    assert ((expected >= 0) & (expected <= 1)).all()


def test_a_recorded_chance_counts_before_the_models_share():
    scores = np.array([[1.0, np.nan], [np.nan, 0.0], [1.0, 1.0]])
    found = chances(scores, np.array([0.9, np.nan, 0.5]))
    assert found[0, 0] == 0.9
    assert found[1, 1] == pytest.approx(2 / 3)
    assert found[2, 0] == pytest.approx(2 / 3)
    whole = np.ones((5, 2))
    assert np.allclose(pseudo_outcomes(whole, np.full(5, np.nan), whole * 0.5), 1.0)


def test_complete_data_is_measured_as_it_is():
    data = examples()
    assert data.estimated is None
    assert data.actual is data.scores
    assert data.filled() is data.scores


def test_a_pair_without_a_clear_gap_is_compared_by_accuracy():
    generator = np.random.default_rng(0)
    equal = (generator.random((400, 2)) < 0.5).astype(float)
    assert figure_of(equal) == "accuracy"
    assert figure_of(equal * [1, 0.2]) == "apgr"
    assert figure_of(np.ones((9, 3))) == "accuracy"
    knowing = judge(equal + generator.random(equal.shape), equal, np.arange(400), baseline=None)
    assert knowing.figure == "accuracy"
    assert knowing.passed
    assert 0 < knowing.interval[0] < knowing.interval[1] < 0.4


def test_calibration_makes_scores_mean_what_they_say_and_reorders_no_pair():
    generator = np.random.default_rng(0)
    truth = generator.random((900, 2)).astype(np.float32)
    actual = (generator.random((900, 2)) < truth).astype(np.float32)
    timid = (0.5 + (truth - 0.5) / 3).astype(np.float32)
    folds = [np.arange(fold, 900, 3) for fold in range(3)]
    found = crossed_calibration(timid, actual, folds)
    assert calibration_error(found, actual) < calibration_error(timid, actual) / 2
    whole = calibrated(timid, actual, folds)(timid)
    gain = lambda s: s[:, 0] - s[:, 1]  # noqa: E731
    assert (np.argsort(gain(whole)) == np.argsort(gain(timid))).mean() > 0.99


def test_an_ensemble_abstains_where_its_advantage_is_too_small_and_survives_its_files():
    overall = np.array([0.6, 0.5], np.float32)
    ones, zeros = np.ones(2, np.float32), np.zeros(2, np.float32)
    member = Ridge(("a", "b"), np.eye(2, dtype=np.float32), zeros)
    made = Ensemble(("a", "b"), [(1.0, member)], Calibration(ones, zeros, overall, 0.05))
    prompts = Prompts(("x", "y", "z"), np.array([[0.50, 0.52], [0.5, 0.9], [0.7, 0.2]], np.float32))
    expected = [[0.6, 0.5], [0.5, 0.9], [0.7, 0.2]]
    assert made.scores(prompts) == pytest.approx(np.array(expected))
    again = Ensemble.load(made.dump(), ("a", "b"))
    assert again.scores(prompts) == pytest.approx(np.array(expected))
    json.dumps(dict(made.dump().parameters))


def test_the_latency_of_the_chosen_models_is_told_where_it_is_known():
    predicted = np.array([[1, 0], [0, 1], [1, 0]])
    latencies = np.array([[10, 100], [np.nan, 300], [30, np.nan]])
    found = answer_latency(predicted, latencies, fixed=1)(np.arange(len(predicted)))
    assert found["latency_p50_ms"] == 30
    assert found["best_single_latency_p50_ms"] == 200
    assert answer_latency(predicted, latencies * [1, np.nan], fixed=0)(np.arange(len(predicted))) == {}


def test_how_often_a_router_abstains_is_told():
    ones = np.ones(2, np.float32)
    calibration = Calibration(ones, 0 * ones, np.array([0.6, 0.5], np.float32), smallest_advantage=0.1)
    scores = calibration(np.array([[0.5, 0.55], [0.5, 0.9], [0.7, 0.2], [0.4, 0.45]], np.float32))
    assert abstention(scores, calibration)(np.arange(4)) == {"abstained": 0.5}


def test_the_time_of_a_decision_has_its_interval():
    times = np.arange(1.0, 101.0)
    bounds = intervals(decision_latency(times), np.arange(len(times)))
    assert set(bounds) == {"decision_p50_ms", "decision_p99_ms"}
    assert bounds["decision_p50_ms"][0] < 50 < bounds["decision_p50_ms"][1]
    assert bounds["decision_p99_ms"][0] < 99 < bounds["decision_p99_ms"][1] <= 100


def test_copies_of_one_prompt_teach_nothing():
    same = [Outcome(query=f"The  Same{' ' * n}", scores={"a": n % 2, "b": 0}) for n in range(40)]
    with pytest.raises(TrainingError) as refused:
        seen(same)
    assert refused.value.code == "TRAINING_DATA_EMPTY"
