"""Similarity-weighted ratings: a Bradley-Terry fit per prompt over the duels of similar prompts (RouteLLM's `sw`)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from appliance.routers.families.knn import nearest, remembered
from appliance.routers.strategies import Floats, Prompts, Strategy, StrategyFiles, parameters

ITERATIONS = 30  # of the minorisation-maximisation; it converges in far fewer


class EloParameters(BaseModel):
    """Parameters of `Elo`.

    Attributes:
        neighbours: similar prompts whose duels count; 0 keeps the overall ratings alone.
        prior: how many duels' worth of the overall ratings each pair of models brings along.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    neighbours: Annotated[int, Field(ge=0, le=100_000)]
    prior: Annotated[float, Field(gt=0, le=1e6)]


class Elo(Strategy):
    """Chance to win a duel against a random other model, from duels on similar prompts.

    Args:
        labels: models.
        embeddings: shape (m, d), unit length.
        outcomes: shape (m, labels), scores 0..1; the higher of two wins, equal ones share.
        parameters: neighbourhood and prior.
    """

    name: ClassVar[str] = "elo"

    def __init__(
        self, labels: tuple[str, ...], embeddings: Floats, outcomes: Floats, parameters: EloParameters
    ) -> None:
        super().__init__(labels)
        self.embeddings, self.outcomes, self.parameters = embeddings, outcomes, parameters
        share = duels(outcomes) / max(len(outcomes), 1)
        self._prior = share * parameters.prior
        self._overall = chances(strengths(share + np.float32(1e-3)))

    def scores(self, prompts: Prompts) -> Floats:
        """Shape (n, labels), 0..1."""
        count = min(self.parameters.neighbours, len(self.embeddings))
        if count == 0:
            return np.tile(self._overall, (len(prompts), 1))
        length = np.maximum(np.linalg.norm(prompts.embeddings, axis=1, keepdims=True), 1e-12)
        result = np.empty((len(prompts), len(self.labels)), np.float32)
        for row, similarity in enumerate((prompts.embeddings / length) @ self.embeddings.T):
            near = np.argpartition(-similarity, count - 1)[:count]
            weights = np.power(10.0, similarity[near] - similarity[near].max())
            result[row] = chances(strengths(duels(self.outcomes[near], weights) + self._prior))
        return result

    def neighbours(self, embedding: Floats) -> list[tuple[int, float]]:
        """The prompts whose duels count for one prompt, nearest first: (row of the training data, cosine)."""
        return nearest(self.embeddings, embedding, self.parameters.neighbours)

    @classmethod
    def load(cls, files: StrategyFiles, labels: tuple[str, ...]) -> Self:
        """Build it from `embeddings`, `outcomes` and its parameters."""
        return cls(labels, *remembered(files, labels), parameters(EloParameters, files, cls.name))

    def dump(self) -> StrategyFiles:
        """Tensors `embeddings`, `outcomes`; parameters."""
        tensors = {"embeddings": self.embeddings, "outcomes": self.outcomes}
        return StrategyFiles(self.parameters.model_dump(), tensors)


def duels(outcomes: Floats, weights: Floats | None = None) -> Floats:
    """Weighted wins of the row's model over the column's, shape (labels, labels); a draw counts half."""
    counted = np.ones(len(outcomes), np.float32) if weights is None else weights
    wins = np.empty((outcomes.shape[1],) * 2, np.float32)
    for row, own in enumerate(outcomes.T[:, :, None]):  # one model at a time: no (n, labels, labels) in memory
        wins[row] = counted @ ((own > outcomes) + np.float32(0.5) * (own == outcomes))
    np.fill_diagonal(wins, 0)
    return wins


def strengths(wins: NDArray[np.floating]) -> Floats:
    """Bradley-Terry strengths by minorisation-maximisation (Hunter 2004), shape (labels,), mean 1."""
    games = wins + wins.T
    total = wins.sum(axis=1)
    strength = np.ones(len(wins))
    for _ in range(ITERATIONS):
        strength = total / np.maximum((games / (strength[:, None] + strength[None, :])).sum(axis=1), 1e-12)
        strength = np.maximum(strength / max(strength.mean(), 1e-12), 1e-6)
    return strength.astype(np.float32)


def chances(strength: Floats) -> Floats:
    """Chance of each model to win against another one drawn at random, shape (labels,)."""
    if len(strength) == 1:
        return np.ones(1, np.float32)
    beats = strength[:, None] / (strength[:, None] + strength[None, :])
    np.fill_diagonal(beats, 0)
    return np.asarray(beats.sum(axis=1) / (len(strength) - 1), np.float32)
