"""A small multilayer perceptron over the prompt's vector; fitted with torch, served with two matrix products."""

from __future__ import annotations

from typing import ClassVar, Self

import numpy as np

from appliance.errors import RouterError
from appliance.routers.families.linear import sigmoid
from appliance.routers.strategies import Floats, Prompts, Strategy, StrategyFiles

MAX_LAYERS = 8


class Mlp(Strategy):
    """sigmoid(W_k relu(... relu(W_1 x + b_1) ...) + b_k).

    Args:
        labels: models.
        layers: pairs of weights, shape (inputs, outputs), and bias, shape (outputs,).
    """

    name: ClassVar[str] = "mlp"

    def __init__(self, labels: tuple[str, ...], layers: list[tuple[Floats, Floats]]) -> None:
        super().__init__(labels)
        self.layers = layers

    def scores(self, prompts: Prompts) -> Floats:
        """Shape (n, labels), 0..1."""
        values = prompts.embeddings
        for weights, bias in self.layers[:-1]:
            values = np.maximum(values @ weights + bias, 0)
        weights, bias = self.layers[-1]
        return sigmoid(values @ weights + bias)

    @classmethod
    def load(cls, files: StrategyFiles, labels: tuple[str, ...]) -> Self:
        """Build it from `0.weights`, `0.bias`, `1.weights`, ..."""
        files.no_parameters(cls.name)
        count = sum(name.endswith(".weights") for name in files.tensors)
        if not 1 <= count <= MAX_LAYERS:
            raise RouterError("ROUTER_WEIGHTS", f"{count} layers, expected 1 to {MAX_LAYERS}")
        layers: list[tuple[Floats, Floats]] = []
        width: int | None = None
        for number in range(count):
            outputs = len(labels) if number == count - 1 else None
            weights = files.tensor(f"{number}.weights", dtype="float32", shape=(width, outputs))
            width = weights.shape[1]
            layers.append((weights, files.tensor(f"{number}.bias", dtype="float32", shape=(width,))))
        return cls(labels, layers)

    def dump(self) -> StrategyFiles:
        """Tensors `<layer>.weights`, `<layer>.bias`."""
        tensors = {
            f"{i}.{n}": t for i, pair in enumerate(self.layers) for n, t in zip(("weights", "bias"), pair, strict=True)
        }
        return StrategyFiles({}, tensors)
