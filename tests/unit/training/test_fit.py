"""Fitting: no leaks, nested choice, byte-reproducible artifacts, honest refusals."""

import importlib
from datetime import UTC, datetime

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from appliance.errors import TrainingError
from appliance.routers.loading import load_router
from appliance.routers.strategies import Prompts
from appliance.training.blending import crossed, mix, shares
from appliance.training.examples import Examples
from appliance.training.families import svm
from appliance.training.families.svm import SvmFitter
from appliance.training.fit import FITTERS, fit, router_artifact
from appliance.training.splits import folds, near_groups, same_text_groups
from tests.support.training import examples

WHEN = datetime(2026, 1, 2, tzinfo=UTC)


def artifact(made, **labels):
    return router_artifact(
        made, name="r", version="1", labels=labels, encoder_digest="0" * 64, data_digest="1" * 64, created=WHEN
    )


def test_no_group_stands_on_both_sides_of_a_split():
    groups = np.random.default_rng(0).integers(0, 40, 300)
    seen = np.zeros(300, int)
    for fit_rows, predict_rows in folds(groups, 5, seed=3):
        assert not set(groups[fit_rows]) & set(groups[predict_rows])
        assert 40 < len(predict_rows) < 80
        seen[predict_rows] += 1
    assert (seen == 1).all()


def test_copies_and_near_copies_are_one_group():
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((40, 16)).astype(np.float32)
    vectors[1] = vectors[0] * 3 + 1e-3
    texts = [f"text {n}" for n in range(40)]
    texts[7] = "TEXT  5"
    groups = near_groups(Prompts(tuple(texts), vectors))
    assert groups[0] == groups[1]
    assert groups[5] == groups[7]
    assert len(set(groups.tolist())) == 38


def test_a_chain_of_neighbours_is_no_set_of_copies():
    vectors = np.tile(np.ones((1, 8), np.float32), (50, 1)) + np.linspace(0, 1e-3, 50, dtype=np.float32)[:, None]
    prompts = Prompts(tuple(f"text {n}" for n in range(50)), vectors)
    assert len(set(near_groups(prompts).tolist())) == 50
    assert same_text_groups(["A b", "a  B", "c", "\uff21 b", "a\u200b \u00adb", "e\u0301", "\u00c9"]).tolist() == [
        0, 0, 1, 0, 0, 2, 2,
    ]  # fmt: skip


@pytest.mark.parametrize("strategy", ["knn", "mlp", "matrix_factorization", "terms", "ridge"])
def test_the_same_inputs_give_the_same_bytes(strategy):
    first, second = (artifact(fit(examples(), strategy=strategy)) for _ in range(2))
    assert first.digest == second.digest
    assert artifact(fit(examples(), strategy=strategy, seed=1)).files["router.yaml"]


def test_the_number_of_cores_changes_no_byte():
    """In several threads k-means sums in another order each time, and the forest's directions come out otherwise."""
    for module in ("scipy.linalg", "sklearn.cluster"):
        importlib.import_module(module)
    generator = np.random.default_rng(0)
    prompts = Prompts(tuple(map(str, range(320))), generator.standard_normal((320, 64)).astype(np.float32))
    scores = generator.random((320, 2)).astype(np.float32)
    made = []
    for threads in (1, 3):
        with threadpool_limits(threads):
            some = Examples(("a", "b"), prompts, scores, np.arange(320), ("",) * 320)
            made.append(artifact(fit(some, strategy="cluster")).digest)
    assert made[0] == made[1]


@pytest.mark.slow
def test_auto_gives_the_same_bytes_and_beats_a_fixed_choice():
    first, second = (fit(examples()) for _ in range(2))
    assert artifact(first).digest == artifact(second).digest
    assert set(first.compared) == {"forest", "knn", "terms", "ensemble"}
    assert first.evaluation["apgr"] > 0.6
    assert load_router(artifact(first)).metadata.evaluation["method"] == "nested cross-validation"


def test_scores_out_of_fold_do_not_know_the_answer():
    """With labels of pure chance nothing can be learned; a leak would show as a gain."""
    noise = examples(120, seed=5)
    shuffled = np.random.default_rng(1).permutation(noise.scores)
    made = fit(type(noise)(noise.labels, noise.prompts, shuffled, noise.groups, noise.tasks), strategy="knn")
    low, high = made.evaluation["intervals"]["apgr"]
    assert low < 0.5 < high + 0.1


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(TrainingError) as refused:
        fit(examples(), strategy="oracle")
    assert refused.value.code == "TRAINING_ARGUMENT"
    assert set(FITTERS) < set(refused.value.evidence["known"])


def test_a_label_that_the_data_does_not_have_is_refused():
    made = fit(examples(), strategy="ridge")
    with pytest.raises(TrainingError) as refused:
        artifact(made, m7="served")
    assert refused.value.code == "TRAINING_ARGUMENT"
    assert load_router(artifact(made, m1="served")).metadata.labels["m1"] == "served"


def test_an_export_that_disagrees_with_the_fit_is_refused(monkeypatch):
    monkeypatch.setattr(svm, "AGREEMENT", -1.0)
    with pytest.raises(TrainingError) as refused:
        SvmFitter().fit(examples(), seed=0)
    assert refused.value.code == "TRAINING_AGREEMENT"


def test_a_blend_takes_the_member_that_knows():
    generator = np.random.default_rng(0)
    actual = (generator.random((300, 3)) < 0.5).astype(np.float32)
    good = actual + generator.normal(0, 0.3, actual.shape).astype(np.float32)
    bad = generator.random((300, 3)).astype(np.float32)
    rows = [np.arange(fold, 300, 5) for fold in range(5)]
    chosen = shares({"bad": bad, "good": good}, actual, rows)
    assert chosen["good"] == 1.0
    assert chosen.get("bad", 0) < 1.0
    assert crossed({"bad": bad, "good": good}, actual, rows).shape == actual.shape
    assert np.allclose(mix({"a": good}, {"a": 0.5}, np.arange(3)), good[:3])
