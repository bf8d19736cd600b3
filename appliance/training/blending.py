"""Blend families: shares chosen on folds that are not measured."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from appliance.training.selection import figure_of, objective

SHARES = (0.0, 0.25, 0.5, 1.0)

Predictions = Mapping[str, NDArray[np.float32]]
Shares = dict[str, float]


def shares(predictions: Predictions, actual: NDArray[np.float32], rows: Sequence[NDArray[np.intp]]) -> Shares:
    """The blend that does best on the folds given; members without a share are left out.

    Args:
        predictions: family -> out-of-fold scores, shape (n, labels).
        actual: shape (n, labels).
        rows: the folds to judge by.
    """
    names, figure = sorted(predictions), figure_of(actual)
    best, worth = dict.fromkeys(names, 1.0), -np.inf
    for combination in itertools.product(SHARES, repeat=len(names)):
        if max(combination) < 1.0:  # the same blend stands there with a greater share
            continue
        blend = dict(zip(names, combination, strict=True))
        value = float(np.mean([objective(mix(predictions, blend, r), actual[r], figure) for r in rows]))
        if value > worth + 1e-9:
            best, worth = blend, value
    return {name: share for name, share in best.items() if share > 0}


def mix(predictions: Predictions, blend: Shares, rows: NDArray[np.intp]) -> NDArray[np.float32]:
    """Weighted mean of the members' scores for some rows, shape (rows, labels)."""
    total = sum(blend.values())
    parts = [np.float32(share / total) * predictions[name][rows] for name, share in blend.items() if share > 0]
    return np.asarray(np.sum(parts, axis=0), np.float32)


def crossed(
    predictions: Predictions, actual: NDArray[np.float32], rows: Sequence[NDArray[np.intp]]
) -> NDArray[np.float32]:
    """The blend's out-of-fold scores: each fold with shares chosen on the other folds.

    Returns:
        Shape (n, labels).
    """
    result = np.zeros_like(actual)
    for number, fold in enumerate(rows):
        others = [other for index, other in enumerate(rows) if index != number] or [fold]
        result[fold] = mix(predictions, shares(predictions, actual, others), fold)
    return result
