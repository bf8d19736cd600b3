"""Fit `knn`: choose k by cross-validation, then remember every example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from appliance.routers.families.knn import Knn, KnnParameters
from appliance.routers.strategies import Strategy
from appliance.training.examples import Examples
from appliance.training.selection import INNER_FOLDS, figure_of, objective
from appliance.training.splits import folds

NEIGHBOURS = (10, 20, 40, 80, 160)


class KnnFitter:
    """k nearest neighbours: nothing is learned but k."""

    name = "knn"

    def fit(self, examples: Examples, *, seed: int) -> tuple[Strategy, Mapping[str, Any]]:
        """Search k, then remember every example."""
        chosen = KnnParameters(k=_best_k(examples, seed))
        return Knn(examples.labels, examples.prompts.embeddings, examples.filled(), chosen), chosen.model_dump()


def _best_k(examples: Examples, seed: int) -> int:
    """One ranking of the neighbours serves every k."""
    sizes = [k for k in NEIGHBOURS if k <= len(examples) // 3] or [max(1, len(examples) // 3)]
    worth, figure = np.zeros(len(sizes)), figure_of(examples.actual)
    outcomes = examples.filled()
    vectors = examples.prompts.embeddings
    count = min(INNER_FOLDS, len(np.unique(examples.groups)))
    for seen, unseen in folds(examples.groups, count, seed=seed + 1):
        similarity = vectors[unseen] @ vectors[seen].T
        near = np.argpartition(-similarity, sizes[-1] - 1, axis=1)[:, : sizes[-1]]
        order = np.argsort(-np.take_along_axis(similarity, near, axis=1), axis=1, kind="stable")
        ranked = outcomes[seen][np.take_along_axis(near, order, axis=1)].cumsum(axis=1)
        for index, k in enumerate(sizes):
            worth[index] += objective(ranked[:, k - 1] / k, examples.actual[unseen], figure)
    return sizes[int(np.argmax(worth))]
