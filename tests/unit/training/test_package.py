"""The gate: only what provably earns its place passes, or a person answers for it on record."""

import numpy as np
import pytest

from appliance.artifact import router_metadata
from appliance.errors import TrainingError
from appliance.training.fit import fit
from appliance.training.package import judge, package
from tests.support.training import examples
from tests.unit.training.test_fit import artifact


@pytest.fixture(scope="module")
def router():
    return artifact(fit(examples(), strategy="ridge"))


def verdict(skill, **options):
    generator = np.random.default_rng(0)
    actual = (generator.random((400, 3)) < 0.5).astype(float)
    predicted = skill * actual + generator.random(actual.shape)
    return judge(predicted, actual, np.arange(400), baseline=None, **options)


def test_a_router_that_beats_the_best_single_passes(router):
    passed = verdict(1.0)
    packaged = package(router, passed)
    gate = router_metadata(packaged).evaluation["gate"]
    assert gate["passed"] is True
    assert gate["interval"][0] > 0
    assert "override" not in gate


def test_a_router_that_does_not_is_refused_with_the_figures(router):
    with pytest.raises(TrainingError) as refused:
        package(router, verdict(0.0))
    assert refused.value.code == "TRAINING_GATE"
    assert refused.value.evidence["against"] == "best_single"
    assert refused.value.evidence["interval"][0] <= 0


def test_who_overrides_the_gate_stands_in_the_metadata_for_ever(router):
    packaged = package(router, verdict(0.0), override="M. Curie, pilot in zone B")
    assert router_metadata(packaged).evaluation["gate"]["override"] == "M. Curie, pilot in zone B"
    with pytest.raises(TrainingError):
        package(router, verdict(0.0), override="   ")


def test_a_router_no_better_than_the_current_one_is_refused(router):
    generator = np.random.default_rng(0)
    actual = (generator.random((400, 2)) < [0.8, 0.4]).astype(float)
    skilled = actual + generator.random(actual.shape)
    same = judge(skilled, actual, np.arange(400), baseline=skilled, against="f" * 64)
    with pytest.raises(TrainingError) as refused:
        package(router, same)
    assert refused.value.code == "TRAINING_GATE"
    better = judge(skilled, actual, np.arange(400), baseline=generator.random(actual.shape), against="f" * 64)
    assert better.passed


def test_a_confidence_that_is_none_is_refused():
    with pytest.raises(TrainingError) as refused:
        verdict(1.0, confidence=1.0)
    assert refused.value.code == "TRAINING_ARGUMENT"


def test_a_router_measured_on_what_it_was_fitted_on_is_refused_however_good_it_looks(router):
    assert verdict(1.0).passed
    with pytest.raises(TrainingError) as refused:
        package(router, verdict(1.0, seen=True))
    assert refused.value.code == "TRAINING_GATE"
    assert refused.value.evidence["seen_in_training"] is True
    packaged = package(router, verdict(1.0, seen=True), override="E. Noether, a trial")
    assert router_metadata(packaged).evaluation["gate"]["override"] == "E. Noether, a trial"
