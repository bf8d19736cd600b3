"""Two servers measured in turns: how far one is from the other, with the interval that the rounds themselves give.

Rounds are resampled, not requests: what disturbs a machine disturbs a whole round, and both servers in it (the
bootstrap of Efron and Tibshirani, An Introduction to the Bootstrap, 1993, percentile intervals).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Phase = dict[str, Any]
Rounds = Sequence[tuple[Phase, Phase]]  # of each round: ours, plain
RESAMPLES = 2000


@dataclass(frozen=True)
class Figure:
    """A figure, and where it lies in 95 of 100 repetitions.

    Attributes:
        value: over all rounds.
        low, high: ends of the interval.
    """

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """For the result file."""
        return {"value": round(self.value, 3), "low": round(self.low, 3), "high": round(self.high, 3)}


def figure(rounds: Rounds, of: Callable[[Rounds], float]) -> Figure:
    """One figure of the rounds, with its interval; equal rounds give equal intervals."""
    random = np.random.default_rng(20261123)
    again = [of([rounds[n] for n in random.integers(0, len(rounds), len(rounds))]) for _ in range(RESAMPLES)]
    low, high = np.quantile(again, (0.025, 0.975))
    return Figure(of(rounds), float(low), float(high))


def ratio(name: str) -> Callable[[Rounds], float]:
    """The median over the rounds of ours as a share of plain."""
    return lambda rounds: float(np.median([ours[name] / plain[name] for ours, plain in rounds]))


def added(quantile: float) -> Callable[[Rounds], float]:
    """How much later that share of all requests of all rounds was answered, milliseconds."""

    def of(rounds: Rounds) -> float:
        ours, plain = (np.concatenate([both[which]["latencies_ms"] for both in rounds]) for which in (0, 1))
        return float(np.quantile(ours, quantile) - np.quantile(plain, quantile))

    return of


def of_ours(name: str, quantile: float) -> Callable[[Rounds], float]:
    """A quantile of a list that only our phases have."""
    return lambda rounds: float(np.quantile(np.concatenate([ours[name] for ours, _ in rounds]), quantile))
