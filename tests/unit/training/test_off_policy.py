"""Off-policy estimates: right on average where the truth is known, and refused where they would be guesses."""

import numpy as np
import pytest

from appliance.artifact import from_files
from appliance.errors import TrainingError
from appliance.training.encoder_export import write_encoder
from appliance.training.logged import value_of
from appliance.training.off_policy import Logged, estimate, greedy
from tests.support.routing import router_files
from tests.support.training import tiny_encoder_artifact, write

CHANCE = np.array([0.7, 0.3])


def traffic(count, seed=0):
    generator = np.random.default_rng(seed)
    worth = np.stack([np.full(count, 0.4), generator.random(count)], axis=1)
    action = (generator.random(count) < CHANCE[1]).astype(int)
    earned = (generator.random(count) < worth[np.arange(count), action]).astype(float)
    return worth, Logged(action, earned, CHANCE[action], np.arange(count))


def test_each_estimator_finds_the_value_that_is_true():
    worth, logged = traffic(6000)
    policy = greedy(worth)
    truth = worth.max(axis=1).mean()
    found, diagnostics = estimate(logged, policy, worth)
    for name in ("ips", "snips", "dr"):
        assert found[name].value == pytest.approx(truth, abs=0.05)
        assert found[name].interval[0] - 0.02 <= truth <= found[name].interval[1] + 0.02
    assert diagnostics["effective_decisions"] < 6000
    assert diagnostics["clipped"] == 0


def test_a_good_reward_model_narrows_the_interval():
    worth, logged = traffic(2000)
    policy = greedy(worth)
    width = lambda e: e.interval[1] - e.interval[0]  # noqa: E731
    found, _ = estimate(logged, policy, worth)
    assert width(found["dr"]) < width(found["ips"])


def test_a_wrong_reward_model_leaves_the_doubly_robust_estimate_right():
    worth, logged = traffic(8000)
    policy = greedy(worth)
    found, _ = estimate(logged, policy, np.zeros_like(worth))
    assert found["dr"].value == pytest.approx(worth.max(axis=1).mean(), abs=0.05)


def test_too_few_decisions_or_none_in_common_are_refused():
    worth, logged = traffic(10)
    with pytest.raises(TrainingError) as refused:
        estimate(logged, greedy(worth), worth)
    assert refused.value.code == "TRAINING_DATA_EMPTY"
    worth, logged = traffic(100)
    never = np.zeros_like(worth)
    never[np.arange(100), 1 - logged.action] = 1
    with pytest.raises(TrainingError) as refused:
        estimate(logged, never, worth)
    assert refused.value.code == "TRAINING_DATA_EMPTY"


@pytest.mark.parametrize("propensity", [0.0, -0.1, 1.2, np.nan])
def test_a_propensity_that_is_no_chance_is_refused(propensity):
    worth, logged = traffic(100)
    chances = logged.propensity.copy()
    chances[3] = propensity
    with pytest.raises(TrainingError) as refused:
        estimate(Logged(logged.action, logged.reward, chances, logged.groups), greedy(worth), worth)
    assert refused.value.code == "TRAINING_DATA"


def test_logged_traffic_is_valued_for_a_router(tmp_path):
    generator = np.random.default_rng(0)
    lines = []
    for number in range(200):
        hard = number % 2 == 1
        model, propensity = ("m0", 0.7) if generator.random() < 0.7 else ("m1", 0.3)
        right = (model == "m1") == hard
        query = f"{'hard' if hard else 'easy'} what is the theorem {number}"
        lines.append({"query": query, "scores": {model: float(right)}, "propensity": propensity})
    lines.append({"query": "easy", "scores": {"m0": 1.0}})
    artifact = from_files(router_files(labels={"m0": "a", "m1": "b"}))
    encoder = tmp_path / "encoder"
    write_encoder(tiny_encoder_artifact(), encoder)
    report = value_of(artifact, write(tmp_path / "l.jsonl", lines), encoder_directory=encoder, cache=tmp_path / "c")
    assert report["left_out"] == 1
    assert report["logged_mean"] < 0.65
    assert set(report["intervals"]) == {"logged_mean", "ips", "snips", "dr"}
    for name in ("ips", "snips", "dr"):
        assert report[name] == pytest.approx(1.0, abs=0.25)
    assert report["snips"] == 1.0


def test_traffic_without_propensities_has_no_value(tmp_path):
    artifact = from_files(router_files(labels={"m0": "a", "m1": "b"}))
    data = write(tmp_path / "l.jsonl", [{"query": "easy", "scores": {"m0": 1.0}}])
    with pytest.raises(TrainingError) as refused:
        value_of(artifact, data, encoder_directory=None, cache=tmp_path)
    assert refused.value.code == "TRAINING_DATA_EMPTY"
