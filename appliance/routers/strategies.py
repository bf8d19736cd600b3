"""The contract of the routing families, and the registry of their names.

A family is one module of `routers/families/` that registers one class. A site's own family comes as an installed
package with an entry point in the group `appliance.strategies`; it is imported only when a router names it.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from appliance import documents
from appliance.errors import RouterError

Floats = NDArray[np.float32]

ENTRY_POINT_GROUP = "appliance.strategies"
PARAMETERS_NAME = "strategy.json"
WEIGHTS_NAME = "weights.safetensors"
MAX_PARAMETERS_BYTES = 64 * 1024**2  # bytes; vocabularies live there

# name -> module; each module holds one class whose `name` is the key
FAMILIES: Mapping[str, str] = {
    "cluster": "appliance.routers.families.cluster",
    "elo": "appliance.routers.families.elo",
    "ensemble": "appliance.routers.families.ensemble",
    "forest": "appliance.routers.families.forest",
    "knn": "appliance.routers.families.knn",
    "logistic": "appliance.routers.families.linear",
    "matrix_factorization": "appliance.routers.families.linear",
    "mlp": "appliance.routers.families.mlp",
    "onnx": "appliance.routers.families.onnx",
    "ridge": "appliance.routers.families.linear",
    "svm": "appliance.routers.families.svm",
    "terms": "appliance.routers.families.terms",
}


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, as a strategy sees them.

    Attributes:
        texts: cleaned (`prompt.prompt_text`), not truncated.
        embeddings: shape (n, d), of the encoder that the router was fitted with.
    """

    texts: tuple[str, ...]
    embeddings: Floats

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 2 or len(self.texts) != len(self.embeddings):
            raise RouterError(
                "ROUTER_INPUT",
                "a batch needs one embedding a text",
                texts=len(self.texts),
                embeddings=self.embeddings.shape,
            )

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Prompts:
        """The rows named, as a batch of their own."""
        index = np.arange(len(self.texts))[rows]
        return Prompts(tuple(self.texts[i] for i in index), self.embeddings[index])


@dataclass(frozen=True)
class StrategyFiles:
    """What a strategy is made of: parameters (JSON) and tensors (safetensors), both from verified bytes."""

    parameters: Mapping[str, Any]
    tensors: Mapping[str, NDArray[Any]]

    def tensor(self, name: str, *, dtype: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
        """A tensor, checked against what the family expects.

        Args:
            name: its name.
            dtype: NumPy name, e.g. `float32`.
            shape: expected lengths; None admits any.

        Raises:
            RouterError: ROUTER_WEIGHTS where it is missing, of another type or shape, or not finite.
        """
        value = self.tensors.get(name)
        if value is None:
            raise RouterError("ROUTER_WEIGHTS", f"tensor {name} is missing", tensors=sorted(self.tensors)[:20])
        fits = value.ndim == len(shape) and all(w is None or w == n for w, n in zip(shape, value.shape, strict=True))
        if value.dtype.name != dtype or not fits:
            raise RouterError(
                "ROUTER_WEIGHTS",
                f"tensor {name} is {value.dtype.name}{list(value.shape)}, expected {dtype}{list(shape)}",
                tensor=name,
            )
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise RouterError("ROUTER_WEIGHTS", f"tensor {name} holds NaN or infinity", tensor=name)
        return value

    def no_parameters(self, strategy: str) -> None:
        """Refuse parameters where the family has none.

        Raises:
            RouterError: ROUTER_PARAMETERS.
        """
        if self.parameters:
            raise RouterError(
                "ROUTER_PARAMETERS", f"{strategy} takes no parameters", given=sorted(self.parameters)[:20]
            )


class Strategy(ABC):
    """One routing family: scores every model for every prompt.

    Attributes:
        name: what `router.yaml` calls it.
        labels: the models, in the order of the scores.
    """

    name: ClassVar[str]

    def __init__(self, labels: tuple[str, ...]) -> None:
        self.labels = labels

    @abstractmethod
    def scores(self, prompts: Prompts) -> Floats:
        """Expected quality of every model for every prompt.

        Args:
            prompts: n prompts.

        Returns:
            Shape (n, labels); higher is better. The families of the appliance estimate the score (0..1) itself.
        """

    @classmethod
    @abstractmethod
    def load(cls, files: StrategyFiles, labels: tuple[str, ...]) -> Self:
        """Build it from its files.

        Raises:
            RouterError: ROUTER_WEIGHTS, ROUTER_PARAMETERS.
        """

    @abstractmethod
    def dump(self) -> StrategyFiles:
        """Its files; `load(dump())` scores alike."""


def family(name: str) -> type[Strategy]:
    """The class of a strategy name.

    Raises:
        RouterError: ROUTER_STRATEGY where neither the appliance nor an installed package offers it.
    """
    if name in FAMILIES:
        module = importlib.import_module(FAMILIES[name])
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Strategy) and value.__dict__.get("name") == name:
                return value
    for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
        loaded = point.load()
        if isinstance(loaded, type) and issubclass(loaded, Strategy):
            return loaded
        raise RouterError("ROUTER_STRATEGY", f"entry point {point.value} is not a Strategy", strategy=name)
    raise RouterError("ROUTER_STRATEGY", f"no strategy is called {name!r}", strategy=name, known=sorted(names()))


def names() -> list[str]:
    """Every strategy name that can be loaded here."""
    return sorted({*FAMILIES, *(point.name for point in entry_points(group=ENTRY_POINT_GROUP))})


def parameters(model: type[documents.Model], files: StrategyFiles, strategy: str) -> documents.Model:
    """A family's parameters as its pydantic model.

    Raises:
        RouterError: ROUTER_PARAMETERS.
    """
    from appliance.errors import DocumentError

    try:
        return documents.validate(model, dict(files.parameters), what=f"parameters of {strategy}")
    except DocumentError as error:
        raise RouterError("ROUTER_PARAMETERS", error.cause, **error.evidence) from None
