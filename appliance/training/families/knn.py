"""Fit `knn`: choose k and the weighting by leave-one-group-out over the training prompts themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from appliance.routers.families.knn import Knn, KnnParameters
from appliance.routers.strategies import Strategy
from appliance.training.examples import Examples
from appliance.training.selection import objective
from appliance.training.splits import folds

NEIGHBOURS = (10, 20, 40, 80, 160)
TEMPERATURES = (0.0, 0.05, 0.1)


class KnnFitter:
    """k nearest neighbours: nothing is learned but k and the weighting."""

    name = "knn"

    def fit(self, examples: Examples, *, seed: int) -> tuple[Strategy, Mapping[str, Any]]:
        """Search k and temperature by five-fold cross-validation, then remember every example."""
        grid = [KnnParameters(k=k, temperature=t) for k in NEIGHBOURS for t in TEMPERATURES if k <= len(examples)]
        if not grid:
            grid = [KnnParameters(k=len(examples))]
        worth = np.zeros(len(grid))
        for fit_rows, predict_rows in folds(examples.groups, min(5, len(np.unique(examples.groups))), seed=seed):
            seen, unseen = examples.take(fit_rows), examples.take(predict_rows)
            for index, parameters in enumerate(grid):
                worth[index] += objective(_build(seen, parameters).scores(unseen.prompts), unseen.scores)
        chosen = grid[int(np.argmax(worth))]
        return _build(examples, chosen), chosen.model_dump()


def _build(examples: Examples, parameters: KnnParameters) -> Knn:
    return Knn(examples.labels, examples.prompts.embeddings, examples.filled(), parameters)
