"""What a router's choices cost in time: the chosen models' answers, and the decision itself.

Percentiles, as measures of some rows, so that each gets an interval over the prompts it was measured on.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from appliance.routers.encoder import Encoder
from appliance.routers.loading import LoadedRouter
from appliance.routers.strategies import Prompts
from appliance.training.bootstrap import Measure

DECISIONS = 100  # prompts that are decided one at a time, as the gateway does
WARM_UP = 5


def answer_latency(predicted: NDArray[np.floating], latencies_ms: NDArray[np.floating], fixed: int) -> Measure:
    """Latency of the models chosen, and of the best single one, where the data tells latencies.

    A model that did not answer a prompt is taken to need its median.

    Args:
        predicted: shape (n, m), scores; the favourite answers.
        latencies_ms: shape (n, m), NaN where unknown.
        fixed: column of the best single model.

    Returns:
        Milliseconds of some prompts, to be bootstrapped; nothing where some model's latency is nowhere known.
    """
    if np.isnan(latencies_ms).all(axis=0).any():
        return lambda _: {}
    whole = np.where(np.isnan(latencies_ms), np.nanmedian(latencies_ms, axis=0), latencies_ms)
    chosen = whole[np.arange(len(whole)), np.argmax(predicted, axis=1)]
    found = {"latency": chosen, "best_single_latency": whole[:, fixed]}

    def measured(rows: NDArray[np.intp]) -> dict[str, float]:
        each = {name: np.percentile(values[rows], (50, 95)) for name, values in found.items()}
        return {f"{name}_p{q}_ms": float(v) for name, both in each.items() for q, v in zip((50, 95), both, strict=True)}

    return measured


def decision_times(
    router: LoadedRouter, encoder: Encoder, prompts: Prompts, clock: Callable[[], float] = time.perf_counter
) -> NDArray[np.float64]:
    """Time to embed and to score one prompt after another, in this process.

    Returns:
        Milliseconds of each of some prompts, those that warmed up left out.
    """
    taken = []
    for text in prompts.texts[: DECISIONS + WARM_UP]:
        started = clock()
        router.scores(Prompts((text,), encoder.encode([text])))
        taken.append((clock() - started) * 1e3)
    return np.array(taken[WARM_UP:] or taken, np.float64)


def decision_latency(times_ms: NDArray[np.float64]) -> Measure:
    """Percentiles of the decision itself, to be bootstrapped over the prompts that were timed."""
    return lambda rows: {f"decision_p{q}_ms": float(np.percentile(times_ms[rows], q)) for q in (50, 99)}
