"""Fit `cluster`: spherical k-means over the vectors, one shrunk table of means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from appliance.routers.families.cluster import Cluster
from appliance.routers.strategies import Strategy
from appliance.training.examples import Examples
from appliance.training.selection import best_by_folds

SIZES = (8, 16, 32, 64, 128)
PRIOR_PROMPTS = 10.0  # a cluster's mean is pulled towards the overall mean as by so many prompts


class ClusterFitter:
    """k-means by scikit-learn; the number of clusters by cross-validation."""

    name = "cluster"

    def fit(self, examples: Examples, *, seed: int) -> tuple[Strategy, Mapping[str, Any]]:
        """Search the number of clusters, then fit on everything."""
        grid = [size for size in SIZES if size <= len(examples) // 5] or [2]
        chosen = best_by_folds(examples, grid, lambda some, size: _build(some, size, seed), seed=seed)
        return _build(examples, chosen, seed), {"clusters": chosen, "prior_prompts": PRIOR_PROMPTS}


def _build(examples: Examples, size: int, seed: int) -> Cluster:
    from sklearn.cluster import KMeans

    found = KMeans(size, n_init=3, random_state=seed).fit(examples.prompts.embeddings)
    scores = examples.filled().astype(np.float64)
    member = np.eye(size)[found.labels_]
    table = (member.T @ scores + PRIOR_PROMPTS * scores.mean(axis=0)) / (member.sum(axis=0)[:, None] + PRIOR_PROMPTS)
    return Cluster(examples.labels, found.cluster_centers_.astype(np.float32), table.astype(np.float32))
