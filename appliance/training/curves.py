"""Cost against quality, per-task figures, and how often small changes of a prompt flip the choice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.training.bootstrap import intervals
from appliance.training.metrics import chosen_scores

STEPS = 41  # settings of the knob along the curve
SYNONYMS: Mapping[str, str] = {
    "answer": "reply", "big": "large", "calculate": "compute", "choose": "pick", "compute": "calculate",
    "correct": "right", "create": "make", "describe": "explain", "determine": "work out", "each": "every",
    "explain": "describe", "find": "determine", "following": "below", "give": "provide", "many": "numerous",
    "most": "the most", "often": "frequently", "person": "individual", "provide": "give", "sentence": "phrase",
    "show": "demonstrate", "summarize": "sum up", "total": "overall", "use": "employ", "what's": "what is",
    "which": "which one", "write": "compose", "can't": "cannot", "doesn't": "does not", "isn't": "is not",
}  # fmt: skip
FRAMES: Sequence[tuple[str, str]] = (
    ("", ""),
    ("Please help me with this:\n", ""),
    ("I have a question. ", ""),
    ("", "\nThank you!"),
)
_WORDS = re.compile(r"[A-Za-z']+")


@dataclass(frozen=True)
class Knob:
    """What each prompt scores and costs while the price of cost rises (RouterBench, Hu et al. 2024).

    Attributes:
        quality: shape (settings, n).
        cost: shape (settings, n).
    """

    quality: NDArray[np.float64]
    cost: NDArray[np.float64]

    def curve(self, rows: NDArray[np.intp] | slice = slice(None)) -> list[tuple[float, float]]:
        """Mean cost and mean score of some prompts, ascending in cost; of settings that cost the same the best."""
        points: dict[float, float] = {}
        means = zip(self.cost[:, rows].mean(axis=1).tolist(), self.quality[:, rows].mean(axis=1).tolist(), strict=True)
        for cost, quality in means:
            points[cost] = max(points.get(cost, 0.0), quality)
        return sorted(points.items())


def cost_quality(predicted: NDArray[np.floating], actual: NDArray[np.floating], costs: NDArray[np.floating]) -> Knob:
    """Each prompt goes to the model with the greatest score - lambda * cost.

    lambda sweeps from "quality only" to "cheapest only".

    Args:
        predicted: shape (n, m).
        actual: shape (n, m).
        costs: shape (m,), mean cost of a request by model.
    """
    spread = float(np.ptp(predicted)) or 1.0
    gaps = np.diff(np.unique(costs))
    smallest = float(gaps.min()) if gaps.size else 1.0
    steps = np.geomspace(1e-3, 1e3, STEPS) * spread / max(float(np.ptp(costs)), 1e-12)
    quality, cost = [], []
    for price in (0.0, *steps, 1e3 * spread / smallest):
        values = predicted - price * costs
        quality.append(chosen_scores(values, actual))
        cost.append(costs[np.argmax(np.where(np.isnan(actual), -np.inf, values), axis=1)])
    return Knob(np.array(quality, np.float64), np.array(cost, np.float64))


def aiq(curve: list[tuple[float, float]]) -> float:
    """Average improvement in quality: area under the non-decreasing hull of the curve over its cost range, 0..1."""
    cost = np.array([point[0] for point in curve])
    quality = np.maximum.accumulate(np.array([point[1] for point in curve]))
    width = cost[-1] - cost[0]
    return float(np.trapezoid(quality, cost) / width) if width > 1e-12 else float(quality[-1])


def by_task(
    predicted: NDArray[np.floating],
    actual: NDArray[np.floating],
    tasks: tuple[str, ...],
    groups: NDArray[np.intp],
    fixed: int,
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row a task, the most frequent first: scores of the router, the fixed choice and the oracle, with intervals.

    Args:
        predicted: shape (n, m).
        actual: shape (n, m).
        tasks: n names, or the empty string.
        groups: shape (n,), copies of a prompt.
        fixed: column of the best single model.
        seed: of the bootstrap.
    """
    figures = {
        "accuracy": chosen_scores(predicted, actual),
        "best_single": actual[:, fixed],
        "oracle": np.nanmax(actual, axis=1),
    }
    names = np.array(tasks)
    found, counts = np.unique(names[names != ""], return_counts=True)
    table = []
    for order in np.argsort(-counts, kind="stable"):
        rows = np.flatnonzero(names == found[order])
        row: dict[str, Any] = {"task": str(found[order]), "prompts": int(counts[order])}
        means = partial(_means, {name: values[rows] for name, values in figures.items()})
        bounds = intervals(means, groups[rows], seed=seed)
        row |= {name: _figure(value) for name, value in means(np.arange(len(rows))).items()}
        table.append(row | {"intervals": {name: [_figure(edge) for edge in edges] for name, edges in bounds.items()}})
    return table


def _means(figures: Mapping[str, NDArray[np.floating]], rows: NDArray[np.intp]) -> dict[str, float]:
    """Means of what is known; NaN where nothing is."""
    return {name: _mean(values[rows]) for name, values in figures.items()}


def _mean(values: NDArray[np.floating]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else float("nan")


def _figure(value: float) -> float | None:
    return round(value, 4) if np.isfinite(value) else None


def flip_shares(
    before: NDArray[np.floating], after: NDArray[np.floating], groups: NDArray[np.intp], *, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Share of prompts whose favourite changes, and its 95 % interval."""
    flipped = (np.argmax(before, axis=1) != np.argmax(after, axis=1)).astype(np.float64)
    return float(flipped.mean()), intervals(partial(_means, {"share": flipped}), groups, seed=seed)["share"]


def disturbed(text: str, generator: np.random.Generator) -> str:
    """A prompt with typing noise: in small letters, with other spaces, or some neighbouring letters swapped."""
    kind = int(generator.integers(3))
    if kind == 0:
        return text.lower()
    if kind == 1:
        return "  ".join(text.split(" "))
    letters = [i for i in range(len(text) - 1) if text[i].isalpha() and text[i + 1].isalpha()]
    for index in generator.choice(letters, min(len(letters), 1 + len(text) // 80), replace=False) if letters else []:
        text = text[:index] + text[index + 1] + text[index] + text[index + 2 :]
    return text


def paraphrased(text: str, generator: np.random.Generator) -> str:
    """The same request in other words: each that has a plain synonym is exchanged half of the time, and it is framed.

    Rules, since no model that paraphrases may be reached: English words alone; any other text is only framed.
    """

    def exchanged(match: re.Match[str]) -> str:
        word = match[0]
        other = SYNONYMS.get(word.lower())
        if other is None or generator.random() < 0.5:
            return word
        return other.capitalize() if word[0].isupper() else other

    before, after = FRAMES[int(generator.integers(len(FRAMES)))]
    return f"{before}{_WORDS.sub(exchanged, text)}{after}"
