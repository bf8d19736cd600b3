"""Percentile bootstrap over prompts: intervals of figures, and of paired differences of figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95

Measure = Callable[[NDArray[np.intp]], Mapping[str, float]]


def intervals(
    measure: Measure, groups: NDArray[np.intp], *, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> dict[str, tuple[float, float]]:
    """Intervals of whatever `measure` gives for a sample of rows.

    Groups are drawn, not rows: prompts that are copies of each other are no independent evidence (cluster bootstrap,
    Efron and Tibshirani 1993, chapter 8).

    Args:
        measure: row numbers -> figures; a figure may be NaN, such resamples are left out.
        groups: shape (n,), the group of each row.
        seed: of the resampling.
        resamples: how many.
        level: coverage.
    """
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    single = bool((sizes == 1).all())
    generator = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        drawn = generator.integers(0, len(starts), len(starts))
        rows = (
            order[starts[drawn]]
            if single
            else order[np.concatenate([np.arange(starts[g], starts[g] + sizes[g]) for g in drawn])]
        )
        for name, value in measure(rows).items():
            found.setdefault(name, []).append(value)
    edges = (100 * (1 - level) / 2, 100 * (1 + level) / 2)
    result = {}
    for name, values in found.items():
        finite = [value for value in values if np.isfinite(value)]
        low, high = np.percentile(finite, edges) if finite else (float("nan"), float("nan"))
        result[name] = (float(low), float(high))
    return result
