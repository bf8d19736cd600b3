"""Measure a router on outcomes: figures of the field, each with a 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import TrainingError
from appliance.routers.loading import LoadedRouter
from appliance.routers.strategies import Prompts
from appliance.training.bootstrap import intervals
from appliance.training.calibrating import calibration_error
from appliance.training.examples import Examples
from appliance.training.metrics import best_single, choice_metrics, pair_metrics
from appliance.training.outcomes import Dataset
from appliance.training.progress import Progress, silent

DIGITS = 4
BATCH = 512


def evaluate_scores(predicted: NDArray[np.floating], examples: Examples, *, seed: int = 0) -> dict[str, Any]:
    """Figures of predicted scores against actual ones.

    Args:
        predicted: shape (n, labels).
        examples: what each model scored; of two models the first counts as the strong one (it was better on the
            training data). On logged traffic the figures are doubly robust estimates, and no oracle can be known.
        seed: of the bootstrap.

    Returns:
        Figure -> value, and `intervals`: figure -> [low, high]. `cpt*` are percent of calls; the rest are shares.
        `best_single` is the best fixed choice on these very prompts, the hardest one to beat.
    """
    actual, labels = examples.actual, examples.labels
    fixed = best_single(actual)
    logged = examples.estimated is not None

    def measure(rows: NDArray[np.intp]) -> Mapping[str, float]:
        figures = choice_metrics(predicted[rows], actual[rows], fixed)
        if logged:  # the greatest of several noisy estimates is no estimate of the greatest
            figures |= dict.fromkeys(("oracle", "gap_closed"), float("nan"))
        if len(labels) == 2:
            both = rows[~np.isnan(actual[rows]).any(axis=1)]
            gain = np.asarray(predicted[both, 0] - predicted[both, 1], np.float64)
            weak, strong = (np.asarray(actual[both, column], np.float64) for column in (1, 0))
            figures |= pair_metrics(gain, weak, strong)
        return figures

    everything = np.arange(len(actual))
    bounds = intervals(measure, examples.groups, seed=seed)
    report: dict[str, Any] = {"prompts": len(actual), "models": len(labels), "best_single_model": labels[fixed]}
    report["calibration_error"] = _figure(calibration_error(predicted, actual))
    report["outcomes"] = "logged, estimated doubly robust" if logged else "every model scored"
    if len(labels) == 2:
        report |= {"strong": labels[0], "weak": labels[1]}
    report |= {name: _figure(value) for name, value in measure(everything).items()}
    report["intervals"] = {name: [_figure(low), _figure(high)] for name, (low, high) in bounds.items()}
    return report


def _figure(value: float) -> float | None:
    return round(value, DIGITS) if np.isfinite(value) else None


def predict(router: LoadedRouter, prompts: Prompts, *, progress: Progress = silent) -> NDArray[np.float32]:
    """The router's scores for every prompt, in batches.

    Returns:
        Shape (n, labels).
    """
    rows = []
    for start in range(0, len(prompts), BATCH):
        rows.append(router.scores(prompts.take(np.arange(start, min(start + BATCH, len(prompts))))))
        progress("scoring prompts", min(start + BATCH, len(prompts)), len(prompts))
    return np.concatenate(rows)


def for_router(dataset: Dataset, router: LoadedRouter) -> Dataset:
    """The data in the order of the router's labels.

    Data may name models by the router's labels or by the gateway's model names.

    Raises:
        TrainingError: TRAINING_LABELS.
    """
    labels = router.metadata.labels
    names = set(dataset.models)
    wanted = tuple(label if label in names else served for label, served in labels.items())
    if not names & set(wanted):
        raise TrainingError(
            "TRAINING_LABELS", "the data scores none of the router's models", data=sorted(names), router=list(labels)
        )
    return dataset.columns(wanted)
