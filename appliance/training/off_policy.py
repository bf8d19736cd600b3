"""What a router would have earned on logged traffic, from decisions that recorded their propensity.

Three estimators, each with a bootstrap interval: inverse propensity scoring (Horvitz and Thompson 1952), its
self-normalised form (Swaminathan and Joachims 2015), and doubly robust (Dudik, Langford and Li 2011).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from appliance.errors import TrainingError
from appliance.training.bootstrap import intervals
from appliance.training.reward_model import LARGEST_WEIGHT

MINIMUM_DECISIONS = 30


@dataclass(frozen=True)
class Logged:
    """Logged decisions.

    Attributes:
        action: shape (n,), column of the model that answered.
        reward: shape (n,), 0..1.
        propensity: shape (n,), chance with which the logging policy chose it, 0 to 1.
        groups: shape (n,), copies of a prompt.
    """

    action: NDArray[np.intp]
    reward: NDArray[np.float64]
    propensity: NDArray[np.float64]
    groups: NDArray[np.intp]


@dataclass(frozen=True)
class Estimate:
    """Value of a policy: mean reward, its 95 % interval."""

    value: float
    interval: tuple[float, float]


def estimate(
    logged: Logged, policy: NDArray[np.floating], predicted: NDArray[np.floating], *, seed: int = 0
) -> tuple[dict[str, Estimate], dict[str, float]]:
    """Estimate the value of a policy from decisions that another policy made.

    Args:
        logged: decisions, n at least 30.
        policy: shape (n, m), the evaluated policy's chance of each model; rows sum to 1.
        predicted: shape (n, m), a model of the reward, fitted on other data.
        seed: of the bootstrap.

    Returns:
        `logged_mean` (what the decisions earned), `ips`, `snips`, `dr`; and the diagnostics
        `effective_decisions` (Kish), `clipped`, `agreement`.

    Raises:
        TrainingError: TRAINING_DATA_EMPTY for too few decisions or none that the policy would repeat.
    """
    rows = np.arange(len(logged.action))
    if len(rows) < MINIMUM_DECISIONS:
        raise TrainingError("TRAINING_DATA_EMPTY", f"{len(rows)} decisions with a propensity", needed=MINIMUM_DECISIONS)
    if not ((logged.propensity > 0) & (logged.propensity <= 1)).all():
        raise TrainingError("TRAINING_DATA", "a propensity is not above 0 and at most 1")
    raw = policy[rows, logged.action] / logged.propensity
    weight = np.minimum(raw, LARGEST_WEIGHT)
    if not weight.any():
        raise TrainingError("TRAINING_DATA_EMPTY", "the policy would repeat none of the logged decisions")
    direct = (policy * predicted).sum(axis=1)
    residual = weight * (logged.reward - predicted[rows, logged.action])

    def values(sample: NDArray[np.intp]) -> Mapping[str, float]:
        total = weight[sample].sum()
        earned = (weight[sample] * logged.reward[sample]).sum()
        return {
            "logged_mean": float(logged.reward[sample].mean()),
            "ips": float(earned / len(sample)),
            "snips": float(earned / total) if total > 0 else float("nan"),
            "dr": float((direct[sample] + residual[sample]).mean()),
        }

    bounds = intervals(values, logged.groups, seed=seed)
    estimates = {name: Estimate(value, bounds[name]) for name, value in values(rows).items()}
    diagnostics = {
        "decisions": float(len(rows)),
        "effective_decisions": float(weight.sum() ** 2 / (weight**2).sum()),
        "clipped": float((raw > LARGEST_WEIGHT).mean()),
        "agreement": float(policy[rows, logged.action].mean()),
    }
    return estimates, diagnostics


def greedy(scores: NDArray[np.floating]) -> NDArray[np.float64]:
    """The policy that always takes the favourite, shape (n, m)."""
    policy = np.zeros(scores.shape)
    policy[np.arange(len(scores)), np.argmax(scores, axis=1)] = 1.0
    return policy
