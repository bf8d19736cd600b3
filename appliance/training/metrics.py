"""What a router is worth, in the figures of the field.

`accuracy`, `best_single`, `oracle`, `gap_closed` for any number of models; APGR and CPT for two, exactly as RouteLLM
computes them (Ong et al. 2024, section 3; `routellm/evals/evaluate.py`): thresholds at ten equal bins of the
router's strong-win-rate, the curve of accuracy over the share of strong calls, the area by the trapezoid rule.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

BINS = 10
CPT_SHARES = (20, 50, 80)  # percent of the performance gap to recover


def chosen_scores(predicted: NDArray[np.floating], actual: NDArray[np.floating]) -> Vector:
    """What each prompt scores when the router's favourite answers it.

    Args:
        predicted: shape (n, m); the first of equal favourites wins.
        actual: shape (n, m), 0..1, NaN where a model was not scored; such a model cannot be chosen.

    Returns:
        Shape (n,).
    """
    allowed = np.where(np.isnan(actual), -np.inf, predicted)
    best = np.argmax(allowed, axis=1)
    return np.asarray(actual[np.arange(len(actual)), best], np.float64)


def best_single(actual: NDArray[np.floating]) -> int:
    """Column of the best fixed choice on these prompts."""
    return int(np.argmax(np.nanmean(actual, axis=0, dtype=np.float64)))


def choice_metrics(predicted: NDArray[np.floating], actual: NDArray[np.floating], fixed: int) -> dict[str, float]:
    """Accuracy of the router's favourites against the fixed choice and the oracle.

    Args:
        predicted: shape (n, m).
        actual: shape (n, m).
        fixed: column of the best single model.
    """
    accuracy = float(chosen_scores(predicted, actual).mean())
    single = float(np.nanmean(actual[:, fixed], dtype=np.float64))
    oracle = float(np.nanmax(actual, axis=1).mean(dtype=np.float64))
    gap = oracle - single
    return {
        "accuracy": accuracy,
        "best_single": single,
        "oracle": oracle,
        "gap_closed": (accuracy - single) / gap if gap > 1e-12 else float("nan"),
        "gain_over_best_single": accuracy - single,
    }


def strong_curve(win_rate: Vector, weak: Vector, strong: Vector, bins: int = BINS) -> tuple[Vector, Vector]:
    """Accuracy over the share of strong calls, as RouteLLM draws it.

    Args:
        win_rate: shape (n,); the higher, the more the prompt needs the strong model.
        weak: shape (n,), the weak model's scores.
        strong: shape (n,), the strong model's scores.
        bins: thresholds are the edges of so many equal bins of `win_rate`.

    Returns:
        Shares of strong calls (0..1, ascending) and accuracies, both of shape (bins + 1,).
    """
    order = np.argsort(-win_rate, kind="stable")
    descending = win_rate[order]
    gained = np.concatenate([[0.0], np.cumsum((strong - weak)[order])])
    edges = np.quantile(win_rate, np.linspace(0, 1, bins + 1))
    calls = np.searchsorted(-descending, -edges, side="right")  # win_rate >= edge
    calls[-1] = np.searchsorted(-descending, -edges[-1], side="left")  # the last edge: strictly above
    calls = np.sort(calls)
    return calls / len(win_rate), weak.mean() + gained[calls] / len(win_rate)


def pair_metrics(win_rate: Vector, weak: Vector, strong: Vector) -> dict[str, float]:
    """APGR and CPT of a router between two models.

    Returns:
        `apgr` (0 is the weak model, 1 the strong one, 0.5 a coin), `cpt20`, `cpt50`, `cpt80`: percent of calls to the
        strong model that recover 20, 50, 80 % of the performance gap. NaN where the strong model is not stronger.
    """
    low, high = float(weak.mean()), float(strong.mean())
    if high - low <= 1e-12:
        return {"apgr": float("nan"), **{f"cpt{share}": float("nan") for share in CPT_SHARES}}
    shares, accuracy = strong_curve(win_rate, weak, strong)
    width = np.trapezoid(np.ones_like(shares), shares)
    apgr = (np.trapezoid(accuracy, shares) - low * width) / ((high - low) * width)
    cpt: Mapping[str, float] = {
        f"cpt{share}": float(np.interp(low + share / 100 * (high - low), accuracy, shares * 100))
        for share in CPT_SHARES
    }
    return {"apgr": float(apgr), **cpt}
