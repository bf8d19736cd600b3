"""Linear families over the prompt's vector: ridge, logistic, matrix factorisation."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np

from appliance.routers.strategies import Floats, Prompts, Strategy, StrategyFiles


class Linear(Strategy):
    """scores = link(x W + b).

    Args:
        labels: models, in the order of the columns.
        weights: shape (d, labels).
        bias: shape (labels,).
    """

    def __init__(self, labels: tuple[str, ...], weights: Floats, bias: Floats) -> None:
        super().__init__(labels)
        self.weights, self.bias = weights, bias

    def scores(self, prompts: Prompts) -> Floats:
        """Shape (n, labels)."""
        return self.link(prompts.embeddings @ self.weights + self.bias)

    def link(self, values: Floats) -> Floats:
        """From the linear value to the expected score."""
        return values

    @classmethod
    def load(cls, files: StrategyFiles, labels: tuple[str, ...]) -> Self:
        """Build it from `weights` and `bias`."""
        files.no_parameters(cls.name)
        weights = files.tensor("weights", dtype="float32", shape=(None, len(labels)))
        return cls(labels, weights, files.tensor("bias", dtype="float32", shape=(len(labels),)))

    def dump(self) -> StrategyFiles:
        """Tensors `weights`, `bias`."""
        return StrategyFiles({}, {"weights": self.weights, "bias": self.bias})


class Ridge(Linear):
    """Least squares on the scores themselves, shrunk."""

    name: ClassVar[str] = "ridge"


class Logistic(Linear):
    """Probability that a model answers rightly, one logistic regression a model."""

    name: ClassVar[str] = "logistic"

    def link(self, values: Floats) -> Floats:
        """The logistic function."""
        return sigmoid(values)


class MatrixFactorization(Strategy):
    """Low-rank affinity of prompt and model: sigmoid((x P) V + b), as RouteLLM's `mf` router (Ong et al. 2024).

    Args:
        labels: models.
        projection: shape (d, r).
        models: shape (r, labels), one vector a model.
        bias: shape (labels,).
    """

    name: ClassVar[str] = "matrix_factorization"

    def __init__(self, labels: tuple[str, ...], projection: Floats, models: Floats, bias: Floats) -> None:
        super().__init__(labels)
        self.projection, self.models, self.bias = projection, models, bias

    def scores(self, prompts: Prompts) -> Floats:
        """Shape (n, labels), 0..1."""
        return sigmoid((prompts.embeddings @ self.projection) @ self.models + self.bias)

    @classmethod
    def load(cls, files: StrategyFiles, labels: tuple[str, ...]) -> Self:
        """Build it from `projection`, `models` and `bias`."""
        files.no_parameters(cls.name)
        projection = files.tensor("projection", dtype="float32", shape=(None, None))
        models = files.tensor("models", dtype="float32", shape=(projection.shape[1], len(labels)))
        return cls(labels, projection, models, files.tensor("bias", dtype="float32", shape=(len(labels),)))

    def dump(self) -> StrategyFiles:
        """Tensors `projection`, `models`, `bias`."""
        return StrategyFiles({}, {"projection": self.projection, "models": self.models, "bias": self.bias})


def sigmoid(values: Any) -> Floats:
    """The logistic function, without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * np.asarray(values, np.float32))), np.float32)
