"""Fit `ridge` and `logistic`: linear regressions of the scores on the vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.routers.families.linear import Linear, Logistic, Ridge
from appliance.routers.strategies import Strategy
from appliance.training.examples import Examples
from appliance.training.selection import best_by_folds

SHRINKAGES = (1.0, 3.0, 10.0, 30.0, 100.0)
ITERATIONS = 30  # Newton steps of one logistic regression; it converges in about eight


class RidgeFitter:
    """Least squares with an L2 penalty, one solve for all models."""

    name = "ridge"

    def fit(self, examples: Examples, *, seed: int) -> tuple[Strategy, Mapping[str, Any]]:
        """Choose the penalty by cross-validation, then fit on everything."""
        return _search(examples, SHRINKAGES, _ridge, seed)


class LogisticFitter:
    """Logistic regression of each model's score; scores between 0 and 1 count as fractional outcomes."""

    name = "logistic"

    def fit(self, examples: Examples, *, seed: int) -> tuple[Strategy, Mapping[str, Any]]:
        """Choose the penalty by cross-validation, then fit on everything."""
        return _search(examples, SHRINKAGES, _logistic, seed)


def _search(
    examples: Examples, grid: Sequence[float], build: Callable[[Examples, float], Linear], seed: int
) -> tuple[Strategy, Mapping[str, Any]]:
    chosen = best_by_folds(examples, grid, build, seed=seed)
    return build(examples, chosen), {"shrinkage": chosen}


def _ridge(examples: Examples, shrinkage: float) -> Ridge:
    design, centre = _centred(examples)
    target = examples.filled().astype(np.float64)
    mean = target.mean(axis=0)
    gram = design.T @ design + shrinkage * np.eye(design.shape[1])
    weights = np.linalg.solve(gram, design.T @ (target - mean))
    return Ridge(examples.labels, weights.astype(np.float32), (mean - centre @ weights).astype(np.float32))


def _logistic(examples: Examples, shrinkage: float) -> Logistic:
    design, centre = _centred(examples)
    columns = []
    for column in range(len(examples.labels)):
        known = ~np.isnan(examples.scores[:, column])
        columns.append(_newton(design[known], examples.scores[known, column].astype(np.float64), shrinkage))
    weights = np.stack([w[:-1] for w in columns], axis=1)
    bias = np.array([w[-1] for w in columns]) - centre @ weights
    return Logistic(examples.labels, weights.astype(np.float32), bias.astype(np.float32))


def _newton(design: NDArray[np.float64], target: NDArray[np.float64], shrinkage: float) -> NDArray[np.float64]:
    """Penalised maximum likelihood by Newton's method (IRLS); the intercept, last, is not penalised."""
    rows = np.concatenate([design, np.ones((len(design), 1))], axis=1)
    penalty = np.full(rows.shape[1], shrinkage)
    penalty[-1] = 1e-6
    weights = np.zeros(rows.shape[1])
    for _ in range(ITERATIONS):
        chance = 0.5 * (1 + np.tanh(0.5 * (rows @ weights)))
        gradient = rows.T @ (chance - target) + penalty * weights
        curvature = (rows * np.maximum(chance * (1 - chance), 1e-6)[:, None]).T @ rows + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        weights -= step
        if np.abs(step).max() < 1e-6:
            break
    return weights


def _centred(examples: Examples) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    design = examples.prompts.embeddings.astype(np.float64)
    centre = design.mean(axis=0)
    return design - centre, centre
