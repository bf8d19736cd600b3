"""What is left of a model that was taken apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Taken:
    """A model as one of the appliance's families, and what the original says about the probe set.

    Attributes:
        family: name in `routers.strategies`.
        parameters: of the family, JSON.
        tensors: of the family.
        probe_scores: shape (probes, labels), the original's scores; rows are compared by their best label.
        original: what it was, for the record.
    """

    family: str
    parameters: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]]
    probe_scores: NDArray[np.float32]
    original: str

    def answer(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """As the worker sends it."""
        report = {"family": self.family, "parameters": dict(self.parameters), "original": self.original}
        return report, {**self.tensors, "probe_scores": self.probe_scores}
