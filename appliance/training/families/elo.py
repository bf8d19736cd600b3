"""Fit `elo`: remember the duels; choose the neighbourhood by cross-validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from appliance.routers.families.elo import Elo, EloParameters
from appliance.routers.strategies import Strategy
from appliance.training.examples import Examples
from appliance.training.selection import best_by_folds

NEIGHBOURS = (50, 150)
PRIORS = (5.0, 20.0)


class EloFitter:
    """Similarity-weighted Bradley-Terry ratings."""

    name = "elo"

    def fit(self, examples: Examples, *, seed: int) -> tuple[Strategy, Mapping[str, Any]]:
        """Search neighbourhood and prior, then remember every example."""
        grid = [EloParameters(neighbours=n, prior=p) for n in NEIGHBOURS for p in PRIORS]
        chosen = best_by_folds(examples, grid, _build, seed=seed)
        return _build(examples, chosen), chosen.model_dump()


def _build(examples: Examples, parameters: EloParameters) -> Elo:
    length = np.maximum(np.linalg.norm(examples.prompts.embeddings, axis=1, keepdims=True), 1e-12)
    return Elo(examples.labels, examples.prompts.embeddings / length, examples.filled(), parameters)
