"""Cost against quality, per-task figures, and how often small changes of a prompt flip the choice."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.training.metrics import chosen_scores

STEPS = 41  # settings of the knob along the curve


def cost_quality(
    predicted: NDArray[np.floating], actual: NDArray[np.floating], costs: NDArray[np.floating]
) -> list[tuple[float, float]]:
    """Mean cost and mean score while the price of cost rises, ascending in cost (RouterBench, Hu et al. 2024).

    Each prompt goes to the model with the greatest score - lambda * cost; lambda sweeps from "quality only" to
    "cheapest only".

    Args:
        predicted: shape (n, m).
        actual: shape (n, m).
        costs: shape (m,), mean cost of a request by model.
    """
    spread = float(np.ptp(predicted)) or 1.0
    gaps = np.diff(np.unique(costs))
    smallest = float(gaps.min()) if gaps.size else 1.0
    points: dict[float, float] = {}
    for price in [
        0.0,
        *np.geomspace(1e-3, 1e3, STEPS) * spread / max(float(np.ptp(costs)), 1e-12),
        1e3 * spread / smallest,
    ]:
        values = predicted - price * costs
        chosen = np.argmax(np.where(np.isnan(actual), -np.inf, values), axis=1)
        quality = float(chosen_scores(values, actual).mean())
        cost = float(costs[chosen].mean())
        points[cost] = max(points.get(cost, 0.0), quality)
    return sorted(points.items())


def aiq(curve: list[tuple[float, float]]) -> float:
    """Average improvement in quality: area under the non-decreasing hull of the curve over its cost range, 0..1."""
    cost = np.array([point[0] for point in curve])
    quality = np.maximum.accumulate(np.array([point[1] for point in curve]))
    width = cost[-1] - cost[0]
    return float(np.trapezoid(quality, cost) / width) if width > 1e-12 else float(quality[-1])


def by_task(
    predicted: NDArray[np.floating], actual: NDArray[np.floating], tasks: tuple[str, ...], fixed: int
) -> list[dict[str, Any]]:
    """One row a task, the most frequent first: prompts, the router's score, the fixed choice's, the oracle's."""
    chosen = chosen_scores(predicted, actual)
    oracle = np.nanmax(actual, axis=1)
    names = np.array(tasks)
    found, counts = np.unique(names[names != ""], return_counts=True)
    rows = []
    for order in np.argsort(-counts, kind="stable"):
        rows_of_task = names == found[order]
        row = {"task": str(found[order]), "prompts": int(counts[order])}
        figures = {"accuracy": chosen, "best_single": actual[:, fixed], "oracle": oracle}
        rows.append(row | {name: round(float(np.nanmean(v[rows_of_task])), 4) for name, v in figures.items()})
    return rows


def disturbed(text: str, generator: np.random.Generator) -> str:
    """A prompt as another person might have typed it: case, spacing, one swapped pair of letters a line."""
    kind = int(generator.integers(4))
    if kind == 0:
        return text.lower()
    if kind == 1:
        return f"Please help me with this:\n{text}"
    if kind == 2:
        return "  ".join(text.split(" "))
    letters = [i for i in range(len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha()]
    for index in generator.choice(letters, min(len(letters), 1 + len(text) // 80), replace=False) if letters else []:
        text = text[:index] + text[index + 1] + text[index] + text[index + 2 :]
    return text


def flips(before: NDArray[np.floating], after: NDArray[np.floating]) -> float:
    """Share of prompts whose favourite changes."""
    return float((np.argmax(before, axis=1) != np.argmax(after, axis=1)).mean())
