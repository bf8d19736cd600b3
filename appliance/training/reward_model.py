"""Logged traffic tells what one model scored on a prompt; what the others would have scored is estimated.

A router is measured on such data by doubly robust pseudo-outcomes (Dudik, Langford and Li 2011): the reward model's
prediction, corrected by what was seen, weighed by how likely it was to be seen. Their mean over prompts is right where
either the propensities or the reward model are. No prompt's prediction comes from a model that saw its outcome.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from appliance.training.splits import folds

FOLDS = 5
SHRINKAGE = 10.0  # of the ridge regression; vectors have about unit length
FEWEST_SEEN = 20  # scores of a model below which its mean is all that is known
LARGEST_WEIGHT = 100.0  # a score rarer than 1 in 100 counts as if it were 1 in 100
MOSTLY_SCORED = 0.5  # share of prompts on which every model was scored, from which on data counts as complete


def is_logged(scores: NDArray[np.floating]) -> bool:
    """Whether most prompts were answered by some of the models only, as traffic is."""
    return bool((~np.isnan(scores)).all(axis=1).mean() < MOSTLY_SCORED)


def predicted_rewards(
    vectors: NDArray[np.floating], scores: NDArray[np.floating], groups: NDArray[np.intp], *, seed: int = 0
) -> NDArray[np.float64]:
    """What each model would score on each prompt, by ridge regressions that did not see the prompt's group.

    Args:
        vectors: shape (n, d).
        scores: shape (n, m), 0..1, NaN where a model was not scored.
        groups: shape (n,).
        seed: of the folds.

    Returns:
        Shape (n, m), 0..1.
    """
    seen_at_all = np.maximum((~np.isnan(scores)).sum(axis=0), 1)
    overall = np.nansum(scores, axis=0, dtype=np.float64) / seen_at_all
    predicted = np.tile(overall, (len(scores), 1))
    count = min(FOLDS, len(np.unique(groups)))
    if count < 2:
        return predicted
    for seen, unseen in folds(groups, count, seed=seed):
        for column in range(scores.shape[1]):
            rows = seen[~np.isnan(scores[seen, column])]
            target = scores[rows, column].astype(np.float64)
            if len(rows) < FEWEST_SEEN:
                predicted[unseen, column] = target.mean() if len(rows) else overall[column]
                continue
            centre = vectors[rows].mean(axis=0, dtype=np.float64)
            design = vectors[rows] - centre
            gram = design.T @ design + SHRINKAGE * np.eye(design.shape[1])
            weights = np.linalg.solve(gram, design.T @ (target - target.mean()))
            predicted[unseen, column] = target.mean() + (vectors[unseen] - centre) @ weights
    return np.asarray(np.clip(predicted, 0.0, 1.0), np.float64)


def chances(scores: NDArray[np.floating], propensities: NDArray[np.float64]) -> NDArray[np.float64]:
    """How likely each score was to be seen, shape (n, m).

    A recorded propensity counts where one model was scored. Elsewhere the model's share of the prompts has to do,
    which is right where traffic was spread without regard to the prompt.

    Args:
        scores: shape (n, m), NaN where a model was not scored.
        propensities: shape (n,), of the one scored model; NaN where nobody recorded it.
    """
    known = ~np.isnan(scores)
    result = np.tile(known.mean(axis=0), (len(scores), 1))
    recorded = (known.sum(axis=1) == 1) & np.isfinite(propensities) & (propensities > 0)
    result[recorded] = propensities[recorded, None]
    return np.asarray(np.maximum(result, 1 / LARGEST_WEIGHT), np.float64)


def pseudo_outcomes(
    scores: NDArray[np.floating], propensities: NDArray[np.float64], predicted: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Doubly robust estimates of every score, shape (n, m); single ones may leave 0..1, their means do not."""
    known = ~np.isnan(scores)
    residual = np.where(known, np.nan_to_num(scores) - predicted, 0.0)
    return np.asarray(predicted + residual / chances(scores, propensities), np.float32)
