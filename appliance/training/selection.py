"""What fitting maximises, and the search that does it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from appliance.routers.strategies import Strategy
from appliance.training.examples import Examples
from appliance.training.metrics import chosen_scores, pair_metrics
from appliance.training.splits import folds

INNER_FOLDS = 3
CLEARLY = 3.0  # standard errors

Figure = Literal["apgr", "accuracy"]

Setting = TypeVar("Setting")


def figure_of(actual: NDArray[np.floating]) -> Figure:
    """The figure by which routers of this data are compared.

    Of two models, one clearly better than the other: APGR, the whole trade-off curve, since the share of strong calls
    is the operator's to set. Of more models, or of two whose means are within chance of each other (where there is no
    gap to recover): the mean score of the chosen model.

    Args:
        actual: shape (n, m), columns best model first.
    """
    if actual.shape[1] != 2:
        return "accuracy"
    gap = (actual[:, 0] - actual[:, 1]).astype(np.float64)
    gap = gap[~np.isnan(gap)]
    clear = len(gap) > 1 and gap.mean() > CLEARLY * gap.std(ddof=1) / np.sqrt(len(gap))
    return "apgr" if clear else "accuracy"


def objective(predicted: NDArray[np.floating], actual: NDArray[np.floating], figure: Figure) -> float:
    """What fitting maximises and the gate compares.

    Args:
        predicted: shape (n, m), columns best model first.
        actual: shape (n, m).
        figure: of all the data (`figure_of`), so that no fold or resample is judged by another one.
    """
    if figure == "apgr":
        known = ~np.isnan(actual).any(axis=1)
        strong, weak = actual[known, 0].astype(float), actual[known, 1].astype(float)
        value = pair_metrics(np.asarray(predicted[known, 0] - predicted[known, 1], float), weak, strong)["apgr"]
        return value if np.isfinite(value) else 0.5
    return float(chosen_scores(predicted, actual).mean())


def best_by_folds(
    examples: Examples,
    grid: Sequence[Setting],
    build: Callable[[Examples, Setting], Strategy],
    *,
    seed: int,
    rounds: int = INNER_FOLDS,
    at_most: int | None = None,
) -> Setting:
    """The setting whose strategies do best on the folds they were not built on.

    Args:
        examples: what may be looked at.
        grid: settings, the preferred one first among equals.
        build: examples and a setting -> strategy.
        seed: of the folds.
        rounds: how many of the folds to try; fewer for families that are slow to fit.
        at_most: prompts to look at, whole groups drawn at random; None looks at all.
    """
    if len(grid) == 1:
        return grid[0]
    figure = figure_of(examples.actual)
    examples = sample(examples, at_most, seed=seed)
    worth = np.zeros(len(grid))
    count = min(INNER_FOLDS, len(np.unique(examples.groups)))
    for fit_rows, predict_rows in itertools.islice(folds(examples.groups, count, seed=seed + 1), rounds):
        seen, unseen = examples.take(fit_rows), examples.take(predict_rows)
        for index, setting in enumerate(grid):
            worth[index] += objective(build(seen, setting).scores(unseen.prompts), unseen.actual, figure)
    return grid[int(np.argmax(worth))]


def sample(examples: Examples, at_most: int | None, *, seed: int) -> Examples:
    """Some of the examples, whole groups drawn at random until there are enough."""
    if at_most is None or len(examples) <= at_most:
        return examples
    _, member, sizes = np.unique(examples.groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(sizes))
    taken = order[np.cumsum(sizes[order]) <= at_most]
    return examples.take(np.flatnonzero(np.isin(member, taken)))
