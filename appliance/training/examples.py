"""What a family is fitted on, and what a fitter is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from appliance.routers.strategies import Prompts, Strategy


@dataclass(frozen=True)
class Examples:
    """Prompts and what each model scored on them.

    Attributes:
        labels: models, best first.
        prompts: n prompts.
        scores: shape (n, labels), 0..1, NaN where a model was not scored.
        groups: shape (n,); rows of one group never stand on both sides of a split.
        tasks: task of each prompt or the empty string; known while fitting, never while serving.
    """

    labels: tuple[str, ...]
    prompts: Prompts
    scores: NDArray[np.float32]
    groups: NDArray[np.intp]
    tasks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def take(self, rows: NDArray[np.intp]) -> Examples:
        """The rows named, as examples of their own."""
        tasks = tuple(self.tasks[i] for i in rows)
        return Examples(self.labels, self.prompts.take(rows), self.scores[rows], self.groups[rows], tasks)

    def filled(self) -> NDArray[np.float32]:
        """Scores with the model's mean in place of what is missing."""
        mean = np.nan_to_num(np.nanmean(self.scores, axis=0), nan=0.0)
        return np.where(np.isnan(self.scores), mean, self.scores).astype(np.float32)


class Fitter(Protocol):
    """Fits one family, choosing its own hyperparameters by cross-validation within the examples it is given."""

    name: str

    def fit(self, examples: Examples, *, seed: int) -> tuple[Strategy, Mapping[str, Any]]:
        """The strategy and the hyperparameters chosen."""
