"""Fit `forest`: extremely randomised trees over structure, latent terms and principal directions of the vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import TrainingError
from appliance.routers.families.forest import Forest, Projection, Trees
from appliance.routers.families.terms import TermWeights
from appliance.routers.strategies import Floats, Strategy
from appliance.training.examples import Examples
from appliance.training.families.terms import BITS, counts, rarity, weighted
from appliance.training.selection import best_by_folds

TREES = 300
LEAVES = (8, 16, 32)  # prompts a leaf
SEARCH_TREES = 60
SEARCH_PROMPTS = 4000
FEATURE_SHARE = 0.3  # of the features, tried at each split
TOPICS = 64
DIRECTIONS = 64
AGREEMENT = 1e-5  # largest difference of a score, fitted against exported


class ForestFitter:
    """Extremely randomised trees by scikit-learn, one forest for all models; the leaf size by validation.

    Args:
        trees: how many.
    """

    name = "forest"

    def __init__(self, trees: int = TREES) -> None:
        self._trees = trees

    def fit(self, examples: Examples, *, seed: int) -> tuple[Strategy, Mapping[str, Any]]:
        """Fit and export; a prompt that falls into one leaf with few others is never decisive.

        Raises:
            TrainingError: TRAINING_AGREEMENT where the exported table scores otherwise than scikit-learn.
        """
        grid = [leaf for leaf in LEAVES if leaf <= len(examples) // 20] or [max(1, len(examples) // 20)]

        def rough(some: Examples, leaf: int) -> Forest:
            projection = _projection(some, seed)
            fitted = _grown(projection.features(some.prompts), some, SEARCH_TREES, leaf, seed)
            return Forest(some.labels, projection, _table(fitted, len(some.labels)))

        leaf = best_by_folds(examples, grid, rough, seed=seed, rounds=1, at_most=SEARCH_PROMPTS)
        projection = _projection(examples, seed)
        features = projection.features(examples.prompts)
        fitted = _grown(features, examples, self._trees, leaf, seed)
        forest = Forest(examples.labels, projection, _table(fitted, len(examples.labels)))
        sample = np.arange(0, len(examples), max(1, len(examples) // 100))
        expected = fitted.predict(features[sample])
        worst = float(np.abs(expected - forest.scores(examples.prompts.take(sample))).max())
        if worst > AGREEMENT:
            raise TrainingError("TRAINING_AGREEMENT", "the exported forest differs from the fitted one", worst=worst)
        settings = {"trees": self._trees, "leaf_prompts": leaf, "feature_share": FEATURE_SHARE}
        return forest, {**settings, "topics": int(projection.terms.matrix.shape[1]), "bits": BITS}


def _grown(features: Floats, examples: Examples, trees: int, leaf: int, seed: int) -> Any:
    from sklearn.ensemble import ExtraTreesRegressor

    forest = ExtraTreesRegressor(
        trees, min_samples_leaf=leaf, max_features=FEATURE_SHARE, n_jobs=-1, random_state=seed
    )  # fmt: skip
    return forest.fit(features, examples.filled())


def _projection(examples: Examples, seed: int) -> Projection:
    from sklearn.utils.extmath import randomized_svd

    matrix = counts(examples.prompts.texts)
    weights = rarity(matrix)
    topics = min(TOPICS, len(examples) - 1)
    _, _, terms = randomized_svd(weighted(matrix, weights), topics, n_iter=4, random_state=seed)
    vectors = examples.prompts.embeddings
    centre = vectors.mean(axis=0)
    _, spread, axes = np.linalg.svd((vectors - centre).astype(np.float64), full_matrices=False)
    kept = min(DIRECTIONS, int((spread > 1e-6).sum()) or 1)
    directions = _signed(axes[:kept]).T.astype(np.float32)
    return Projection(TermWeights(BITS, weights, _signed(terms).T.astype(np.float32)), centre, directions)


def _signed(axes: NDArray[np.floating]) -> NDArray[np.floating]:
    """Each axis with its largest entry positive: a decomposition leaves the sign open."""
    largest = np.abs(axes).argmax(axis=1)
    return axes * np.where(axes[np.arange(len(axes)), largest] < 0, -1, 1)[:, None]


def _table(fitted: Any, labels: int) -> Trees:
    """scikit-learn's trees as one table; children follow their parents there too."""
    roots, features, thresholds, children, values = [], [], [], [], []
    nodes = leaves = 0
    for estimator in fitted.estimators_:
        tree = estimator.tree_
        leaf = tree.children_left < 0
        number = np.cumsum(leaf) - 1 + leaves
        below = np.stack([tree.children_left + nodes, tree.children_right + nodes], axis=1)
        below[leaf] = np.stack([number[leaf], np.zeros(int(leaf.sum()), np.int64)], axis=1)
        roots.append(nodes)
        features.append(np.where(leaf, -1, tree.feature))
        thresholds.append(np.where(leaf, 0, tree.threshold))
        children.append(below)
        values.append(tree.value[leaf, :, 0])
        nodes += tree.node_count
        leaves += int(leaf.sum())
    return Trees(
        np.array(roots, np.int32),
        np.concatenate(features).astype(np.int32),
        _rounded_down(np.concatenate(thresholds)),
        np.concatenate(children).astype(np.int32),
        np.concatenate(values).astype(np.float32).reshape(leaves, labels),
    )


def _rounded_down(thresholds: NDArray[np.float64]) -> Floats:
    """The greatest float32 not above each threshold, so that `x <= t` says the same for every float32 x."""
    near = thresholds.astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)
