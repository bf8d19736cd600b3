"""k nearest neighbours over prompt embeddings, exact, in one matrix product."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from appliance.errors import RouterError
from appliance.routers.strategies import Floats, Prompts, Strategy, StrategyFiles, parameters


class KnnParameters(BaseModel):
    """Parameters of `Knn`.

    Attributes:
        k: neighbours that vote.
        temperature: a neighbour's weight is exp((cosine - best cosine) / temperature); 0 weighs all alike.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    k: Annotated[int, Field(ge=1, le=100_000)]
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.0


class Knn(Strategy):
    """Mean outcome of the k most similar prompts (cosine).

    Args:
        labels: models, in the order of `outcomes`' columns.
        embeddings: shape (m, d); brought to unit length.
        outcomes: shape (m, labels), scores 0..1.
        parameters: k and weighting.
    """

    name: ClassVar[str] = "knn"

    def __init__(
        self, labels: tuple[str, ...], embeddings: Floats, outcomes: Floats, parameters: KnnParameters
    ) -> None:
        super().__init__(labels)
        self.embeddings, self.outcomes, self.parameters = _unit(embeddings), outcomes, parameters
        self._k = min(parameters.k, len(embeddings))

    def neighbours(self, embedding: Floats) -> list[tuple[int, float]]:
        """The neighbours of one prompt, nearest first: (row of the training data, cosine)."""
        return nearest(self.embeddings, embedding, self._k)

    def scores(self, prompts: Prompts) -> Floats:
        """Weighted mean of the neighbours' outcomes, shape (n, labels)."""
        result = np.empty((len(prompts), len(self.labels)), np.float32)
        for start in range(0, len(prompts), 64):  # bounds the similarity matrix to 64 rows
            similarity = _unit(prompts.embeddings[start : start + 64]) @ self.embeddings.T
            rows = np.argpartition(-similarity, self._k - 1, axis=1)[:, : self._k]
            near = np.take_along_axis(similarity, rows, axis=1)
            weights = np.ones_like(near)
            if self.parameters.temperature > 0:
                weights = np.exp((near - near.max(axis=1, keepdims=True)) / self.parameters.temperature)
            weights /= weights.sum(axis=1, keepdims=True)
            result[start : start + 64] = np.einsum("nk,nkm->nm", weights, self.outcomes[rows])
        return result

    @classmethod
    def load(cls, files: StrategyFiles, labels: tuple[str, ...]) -> Self:
        """Build it from `embeddings`, `outcomes` and its parameters."""
        return cls(labels, *remembered(files, labels), parameters(KnnParameters, files, cls.name))

    def dump(self) -> StrategyFiles:
        """Tensors `embeddings`, `outcomes`; parameters."""
        return StrategyFiles(self.parameters.model_dump(), {"embeddings": self.embeddings, "outcomes": self.outcomes})


def remembered(files: StrategyFiles, labels: tuple[str, ...]) -> tuple[Floats, Floats]:
    """Prompts and what each model scored on them: tensors `embeddings` and `outcomes`.

    Raises:
        RouterError: ROUTER_WEIGHTS.
    """
    embeddings = files.tensor("embeddings", dtype="float32", shape=(None, None))
    outcomes = files.tensor("outcomes", dtype="float32", shape=(len(embeddings), len(labels)))
    if not embeddings.size:
        raise RouterError("ROUTER_WEIGHTS", "the router remembers no prompt", tensor="embeddings")
    return embeddings, outcomes


def nearest(embeddings: Floats, embedding: Floats, count: int) -> list[tuple[int, float]]:
    """The rows most similar to a vector, nearest first, with their cosines.

    Args:
        embeddings: shape (m, d), unit length.
        embedding: d numbers.
        count: at most so many.
    """
    similarity = embeddings @ _unit(embedding.reshape(1, -1))[0]
    rows = np.argsort(-similarity, kind="stable")[:count]
    return [(int(row), float(similarity[row])) for row in rows]


def _unit(rows: Floats) -> Floats:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    length = np.where(np.abs(length - 1) < 1e-6, 1, np.maximum(length, 1e-12))  # unit rows stay bit for bit
    return np.asarray(rows / length, np.float32)
