"""Fit `svm`: scikit-learn's SVC, one a model, and Platt's calibration on folds it has not seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import TrainingError
from appliance.routers.families.svm import Svm, SvmParameters
from appliance.routers.strategies import Prompts, Strategy
from appliance.training.examples import Examples
from appliance.training.selection import best_by_folds
from appliance.training.splits import folds

SETTINGS = ((1.0, 1.0), (0.3, 1.0), (1.0, 0.3), (1.0, 3.0))  # cost, gamma; squared distances lie between 0 and 4
SEARCH_PROMPTS = 1500
AGREEMENT = 1e-3  # largest difference of a decision value, fitted against exported


class SvmFitter:
    """One Gaussian-kernel machine a model, on whether it scored at least one half."""

    name = "svm"

    def fit(self, examples: Examples, *, seed: int) -> tuple[Strategy, Mapping[str, Any]]:
        """Choose cost and kernel width by validation on some of the prompts, then fit and calibrate every machine.

        Raises:
            TrainingError: TRAINING_AGREEMENT where the exported form decides otherwise than scikit-learn.
        """
        chosen = best_by_folds(
            examples, SETTINGS, lambda some, setting: _fit(some, *setting, seed)[0], seed=seed,
            rounds=1, at_most=SEARCH_PROMPTS,
        )  # fmt: skip
        svm, expected = _fit(examples, *chosen, seed)
        _agree(svm, examples.prompts, expected)
        return svm, {"cost": chosen[0], "gamma": chosen[1], "support_vectors": len(svm.vectors)}


def _fit(examples: Examples, cost: float, gamma: float, seed: int) -> tuple[Svm, NDArray[np.float32]]:
    """The calibrated machines, and their decision values by scikit-learn, shape (n, labels)."""
    count, width = len(examples), len(examples.labels)
    coefficients = np.zeros((count, width), np.float32)
    calibration = np.zeros((3, width), np.float32)
    expected = np.zeros((count, width), np.float32)
    for column in range(width):
        known = np.flatnonzero(~np.isnan(examples.scores[:, column]))
        right = examples.scores[known, column] >= 0.5
        if right.all() or not right.any():
            calibration[:, column] = (0, 0, 6 if right.all() else -6)
            continue
        machine = _machine(examples.prompts.embeddings[known], right, cost, gamma)
        coefficients[known[machine.support_], column] = machine.dual_coef_[0]
        slope, offset = _platt(examples.take(known), right, cost, gamma, seed)
        calibration[:, column] = (machine.intercept_[0], slope, offset)
        expected[:, column] = machine.decision_function(examples.prompts.embeddings)
    used = np.flatnonzero(coefficients.any(axis=1))
    intercepts, slopes, offsets = calibration
    parts = (intercepts, slopes, offsets)
    parameters = SvmParameters(gamma=gamma)
    vectors = np.ascontiguousarray(examples.prompts.embeddings[used])
    svm = Svm(examples.labels, vectors, coefficients[used], parts, parameters)
    return svm, expected


def _machine(vectors: NDArray[np.float32], right: NDArray[np.bool_], cost: float, gamma: float) -> Any:
    from sklearn.svm import SVC

    return SVC(C=cost, gamma=gamma, cache_size=500).fit(vectors, right)


def _platt(examples: Examples, right: NDArray[np.bool_], cost: float, gamma: float, seed: int) -> tuple[float, float]:
    """Slope and offset of the logistic that maps decision values to chances (Platt 1999), out of fold."""
    from sklearn.linear_model import LogisticRegression

    decision = np.zeros(len(examples))
    for fit_rows, predict_rows in folds(examples.groups, min(3, len(np.unique(examples.groups))), seed=seed + 2):
        if len(np.unique(right[fit_rows])) == 2:
            machine = _machine(examples.prompts.embeddings[fit_rows], right[fit_rows], cost, gamma)
            decision[predict_rows] = machine.decision_function(examples.prompts.embeddings[predict_rows])
    found = LogisticRegression(C=1e3).fit(decision[:, None], right)
    return float(found.coef_[0, 0]), float(found.intercept_[0])


def _agree(svm: Svm, prompts: Prompts, expected: NDArray[np.float32]) -> None:
    sample = np.arange(0, len(prompts), max(1, len(prompts) // 200))
    _, slopes, offsets = svm.calibration
    fitted = 0.5 * (1 + np.tanh(0.5 * (slopes * expected[sample] + offsets)))
    worst = float(np.abs(fitted - svm.scores(prompts.take(sample))).max())
    if worst > AGREEMENT:
        raise TrainingError("TRAINING_AGREEMENT", "the exported machine differs from the fitted one", worst=worst)
