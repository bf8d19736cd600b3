"""What fitting maximises."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from appliance.training.metrics import chosen_scores, pair_metrics


def objective(predicted: NDArray[np.floating], actual: NDArray[np.floating]) -> float:
    """The figure by which routers are compared while fitting.

    For two models: APGR, the whole trade-off curve, since the share of strong calls is the operator's to set. For
    more: the mean score of the chosen model.

    Args:
        predicted: shape (n, m), columns best model first.
        actual: shape (n, m).
    """
    if actual.shape[1] == 2:
        known = ~np.isnan(actual).any(axis=1)
        strong, weak = actual[known, 0].astype(float), actual[known, 1].astype(float)
        value = pair_metrics(np.asarray(predicted[known, 0] - predicted[known, 1], float), weak, strong)["apgr"]
        return value if np.isfinite(value) else 0.5
    return float(chosen_scores(predicted, actual).mean())
