"""Make scores mean what they say, and know when they say nothing: fitted out of fold, measured on other folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from appliance.routers.families.ensemble import Calibration
from appliance.training.bootstrap import Measure
from appliance.training.selection import figure_of, objective

ADVANTAGES = (0.0, 0.01, 0.02, 0.04, 0.08)
STEEPEST = 3.0
PRIOR_PROMPTS = 200.0  # a slope is pulled towards 1 as by so many prompts
BINS = 10

Scores = NDArray[np.float32]


def calibrated(predicted: Scores, actual: Scores, rows: Sequence[NDArray[np.intp]]) -> Calibration:
    """One slope, an offset for each model, by shrunk least squares; and the advantage below which to abstain.

    The slope is common to all models: slopes of their own would weigh the models' errors differently and so reorder
    the differences between them, which is what a router is for (on the pair data APGR fell from 0.698 to 0.685).

    Args:
        predicted: shape (n, labels), out-of-fold scores.
        actual: shape (n, labels), 0..1, NaN where a model was not scored.
        rows: the folds to judge by.
    """
    used = np.concatenate(list(rows))
    known = ~np.isnan(actual[used])
    count = np.maximum(known.sum(axis=0), 1)
    x = np.where(known, predicted[used], 0.0).astype(np.float64)
    y = np.nan_to_num(actual[used]).astype(np.float64)
    mean, overall = x.sum(axis=0) / count, y.sum(axis=0) / count
    x, y = np.where(known, x - mean, 0.0), np.where(known, y - overall, 0.0)
    spread = float((x * x).sum())
    prior = PRIOR_PROMPTS * spread / max(len(used), 1)
    slope = (float((x * y).sum()) + prior) / (spread + prior) if spread > 1e-12 else 1.0
    slopes = np.full(actual.shape[1], np.clip(slope, 0.0, STEEPEST))
    offsets = overall - slopes * mean
    parts = (slopes.astype(np.float32), offsets.astype(np.float32), overall.astype(np.float32))
    made = [Calibration(*parts, advantage) for advantage in ADVANTAGES]
    figure = figure_of(actual)
    worth = [float(np.mean([objective(each(predicted[fold]), actual[fold], figure) for fold in rows])) for each in made]
    return made[int(np.argmax(worth))]


def crossed_calibration(predicted: Scores, actual: Scores, rows: Sequence[NDArray[np.intp]]) -> Scores:
    """Calibrated scores of each fold, by what the other folds taught; shape (n, labels)."""
    result = np.zeros_like(predicted)
    for number, fold in enumerate(rows):
        others = [other for index, other in enumerate(rows) if index != number] or [fold]
        result[fold] = calibrated(predicted, actual, others)(predicted[fold])
    return result


def abstention(calibrated_scores: NDArray[np.floating], calibration: Calibration) -> Measure:
    """The share of prompts that were left to the model best on the whole, to be bootstrapped.

    Args:
        calibrated_scores: shape (n, labels), as the ensemble gives them.
        calibration: the ensemble's.
    """
    abstained = (calibrated_scores == calibration.overall).all(axis=1)
    return lambda rows: {"abstained": float(abstained[rows].mean())}


def calibration_error(predicted: NDArray[np.floating], actual: NDArray[np.floating]) -> float:
    """Expected calibration error over all models (Naeini et al. 2015): ten equally filled bins of the score.

    It has no bootstrap interval: in a sum of absolute values chance never cancels out, so that a resample, which holds
    chance twice, is nearly always above the figure itself (a KNN of ten neighbours: 0.024 with 0.025 to 0.052).
    """
    known = ~np.isnan(actual)
    score, right = predicted[known], actual[known]
    order = np.argsort(score, kind="stable")
    bins = [part for part in np.array_split(order, BINS) if len(part)]
    return float(sum(len(part) * abs(score[part].mean() - right[part].mean()) for part in bins) / max(len(order), 1))
