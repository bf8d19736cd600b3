"""What a family is fitted on, and what a fitter is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from appliance.routers.strategies import Prompts, Strategy
from appliance.training.reward_model import predicted_rewards


@dataclass(frozen=True)
class Examples:
    """Prompts and what each model scored on them.

    Attributes:
        labels: models, best first.
        prompts: n prompts.
        scores: shape (n, labels), 0..1, NaN where a model was not scored.
        groups: shape (n,); rows of one group never stand on both sides of a split.
        tasks: task of each prompt or the empty string; known while fitting, never while serving.
        estimated: shape (n, labels), doubly robust estimates of every score where the data is logged traffic, else
            None (see `reward_model`).
    """

    labels: tuple[str, ...]
    prompts: Prompts
    scores: NDArray[np.float32]
    groups: NDArray[np.intp]
    tasks: tuple[str, ...]
    estimated: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: NDArray[np.intp]) -> Examples:
        """The rows named, as examples of their own."""
        return replace(
            self,
            prompts=self.prompts.take(rows),
            scores=self.scores[rows],
            groups=self.groups[rows],
            tasks=tuple(self.tasks[i] for i in rows),
            estimated=None if self.estimated is None else self.estimated[rows],
        )

    @property
    def actual(self) -> NDArray[np.float32]:
        """What predictions are measured against, shape (n, labels): the scores, or their estimates."""
        return self.scores if self.estimated is None else self.estimated

    def filled(self) -> NDArray[np.float32]:
        """Scores to fit on: where one is missing, what a reward model fitted on these very examples expects."""
        missing = np.isnan(self.scores)
        if not missing.any():
            return self.scores
        expected = predicted_rewards(self.prompts.embeddings, self.scores, self.groups)
        return np.where(missing, expected, self.scores).astype(np.float32)


class Fitter(Protocol):
    """Fits one family, choosing its own hyperparameters by cross-validation within the examples it is given."""

    name: str

    def fit(self, examples: Examples, *, seed: int) -> tuple[Strategy, Mapping[str, Any]]:
        """The strategy and the hyperparameters chosen."""
