"""Support vector machines with a Gaussian kernel, one a model, calibrated after Platt."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from appliance.routers.families.linear import sigmoid
from appliance.routers.strategies import Floats, Prompts, Strategy, StrategyFiles, parameters


class SvmParameters(BaseModel):
    """Parameters of `Svm`: the kernel is exp(-gamma |x - v|^2)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gamma: Annotated[float, Field(gt=0, le=1e6)]


class Svm(Strategy):
    """sigmoid(slope (K(x, V) C + b) + offset): probability that each model answers rightly.

    Args:
        labels: models.
        vectors: shape (m, d), support vectors of all machines together.
        coefficients: shape (m, labels), 0 where a vector supports another model's machine.
        intercepts, slopes, offsets: shape (labels,).
        parameters: the kernel.
    """

    name: ClassVar[str] = "svm"

    def __init__(
        self,
        labels: tuple[str, ...],
        vectors: Floats,
        coefficients: Floats,
        calibration: tuple[Floats, Floats, Floats],
        parameters: SvmParameters,
    ) -> None:
        super().__init__(labels)
        self.vectors, self.coefficients, self.calibration, self.parameters = (
            vectors,
            coefficients,
            calibration,
            parameters,
        )
        self._squares = np.einsum("md,md->m", vectors, vectors)

    def scores(self, prompts: Prompts) -> Floats:
        """Shape (n, labels), 0..1."""
        intercepts, slopes, offsets = self.calibration
        rows = []
        for start in range(0, len(prompts), 64):
            x = prompts.embeddings[start : start + 64]
            distance = np.einsum("nd,nd->n", x, x)[:, None] + self._squares - 2 * (x @ self.vectors.T)
            kernel = np.exp(-np.float32(self.parameters.gamma) * np.maximum(distance, 0))
            rows.append(sigmoid(slopes * (kernel @ self.coefficients + intercepts) + offsets))
        return np.concatenate(rows) if rows else np.empty((0, len(self.labels)), np.float32)

    @classmethod
    def load(cls, files: StrategyFiles, labels: tuple[str, ...]) -> Self:
        """Build it from its tensors and parameters."""
        vectors = files.tensor("vectors", dtype="float32", shape=(None, None))
        coefficients = files.tensor("coefficients", dtype="float32", shape=(len(vectors), len(labels)))
        intercepts, slopes, offsets = (
            files.tensor(name, dtype="float32", shape=(len(labels),)) for name in ("intercepts", "slopes", "offsets")
        )
        gamma = parameters(SvmParameters, files, cls.name)
        return cls(labels, vectors, coefficients, (intercepts, slopes, offsets), gamma)

    def dump(self) -> StrategyFiles:
        """Tensors `vectors`, `coefficients`, `intercepts`, `slopes`, `offsets`; parameters."""
        intercepts, slopes, offsets = self.calibration
        tensors = {
            "vectors": self.vectors,
            "coefficients": self.coefficients,
            "intercepts": intercepts,
            "slopes": slopes,
            "offsets": offsets,
        }
        return StrategyFiles(self.parameters.model_dump(), tensors)
