"""One table of expected scores a cluster of prompts: the best model of the neighbourhood answers."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from appliance.errors import RouterError
from appliance.routers.strategies import Floats, Prompts, Strategy, StrategyFiles


class Cluster(Strategy):
    """Scores of the nearest centroid's cluster.

    Args:
        labels: models.
        centroids: shape (clusters, d).
        table: shape (clusters, labels), mean scores of the cluster, shrunk towards the overall mean.
    """

    name: ClassVar[str] = "cluster"

    def __init__(self, labels: tuple[str, ...], centroids: Floats, table: Floats) -> None:
        super().__init__(labels)
        self.centroids, self.table = centroids, table
        self._half_squares = 0.5 * np.einsum("cd,cd->c", centroids, centroids)

    def assign(self, prompts: Prompts) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """The nearest centroid of each prompt, shape (n,)."""
        return np.asarray(np.argmax(prompts.embeddings @ self.centroids.T - self._half_squares, axis=1))

    def scores(self, prompts: Prompts) -> Floats:
        """Shape (n, labels)."""
        return self.table[self.assign(prompts)]

    @classmethod
    def load(cls, files: StrategyFiles, labels: tuple[str, ...]) -> Self:
        """Build it from `centroids` and `table`."""
        files.no_parameters(cls.name)
        centroids = files.tensor("centroids", dtype="float32", shape=(None, None))
        if not centroids.size:
            raise RouterError("ROUTER_WEIGHTS", "the router has no cluster", tensor="centroids")
        return cls(labels, centroids, files.tensor("table", dtype="float32", shape=(len(centroids), len(labels))))

    def dump(self) -> StrategyFiles:
        """Tensors `centroids`, `table`."""
        return StrategyFiles({}, {"centroids": self.centroids, "table": self.table})
