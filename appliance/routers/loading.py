"""From verified bytes to a router that scores."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance import documents
from appliance.artifact import ArtifactFiles, RouterMetadata, router_metadata
from appliance.errors import DocumentError, RouterError
from appliance.routers import foreign
from appliance.routers.strategies import (
    MAX_PARAMETERS_BYTES,
    PARAMETERS_NAME,
    WEIGHTS_NAME,
    Floats,
    Prompts,
    Strategy,
    StrategyFiles,
    family,
)

DTYPES = frozenset({"float32", "int32", "int64", "uint8"})


@dataclass(frozen=True)
class LoadedRouter:
    """A router ready to score.

    Attributes:
        metadata: its `router.yaml`.
        strategy: the family's instance.
        digest: of the artifact (`ArtifactFiles.digest`).
    """

    metadata: RouterMetadata
    strategy: Strategy
    digest: str

    def scores(self, prompts: Prompts) -> Floats:
        """Score every label for every prompt, checked: shape (n, labels), finite.

        Raises:
            RouterError: ROUTER_SCORES.
        """
        expected = (len(prompts), len(self.metadata.labels))
        try:
            scores = np.asarray(self.strategy.scores(prompts), np.float32)
        except RouterError:
            raise
        except Exception as error:  # NumPy's, where dimensions differ; anything, from a site's own family
            raise RouterError(
                "ROUTER_SCORES",
                f"{self.metadata.strategy} fails on vectors of {prompts.embeddings.shape[1]} numbers: {error}"[:300],
                router=self.digest,
            ) from error
        if scores.shape != expected or not np.isfinite(scores).all():
            raise RouterError(
                "ROUTER_SCORES",
                f"{self.metadata.strategy} gave scores of shape {scores.shape}, expected finite {expected}",
                router=self.digest,
            )
        return scores


def load_router(artifact: ArtifactFiles, *, formats: Collection[str] = ()) -> LoadedRouter:
    """Build the router of a *verified* artifact. Our own formats execute nothing: JSON and plain tensors only.

    Args:
        artifact: the verified files.
        formats: further model formats that the zone's signed policy names; without them a router that needs one is
            refused.

    Raises:
        ArtifactError: ARTIFACT_MISSING, ARTIFACT_METADATA, ARTIFACT_VERSION.
        RouterError: ROUTER_STRATEGY, ROUTER_PARAMETERS, ROUTER_WEIGHTS; ROUTER_FORMAT, ROUTER_MODEL,
            ROUTER_MODEL_IMPORT, ROUTER_BACKEND for the other formats.
    """
    metadata = router_metadata(artifact)
    model = foreign.model_file(artifact.files)
    if model is not None:
        strategy = foreign.load(model, artifact.files[model], metadata, formats=formats)
    else:
        strategy = family(metadata.strategy).load(read_strategy_files(artifact.files), tuple(metadata.labels))
    return LoadedRouter(metadata, strategy, artifact.digest)


def read_strategy_files(files: Mapping[str, bytes]) -> StrategyFiles:
    """Parse `strategy.json` and `weights.safetensors`.

    Raises:
        RouterError: ROUTER_PARAMETERS, ROUTER_WEIGHTS.
    """
    parameters: Mapping[str, Any] = {}
    if PARAMETERS_NAME in files:
        try:
            parameters = documents.read_json(
                files[PARAMETERS_NAME], what=PARAMETERS_NAME, max_bytes=MAX_PARAMETERS_BYTES
            )
        except DocumentError as error:
            raise RouterError("ROUTER_PARAMETERS", error.cause, **error.evidence) from None
        if not isinstance(parameters, Mapping):
            raise RouterError("ROUTER_PARAMETERS", f"{PARAMETERS_NAME} is not a mapping")
    return StrategyFiles(parameters, read_tensors(files[WEIGHTS_NAME]) if WEIGHTS_NAME in files else {})


def read_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """Parse safetensors bytes.

    Raises:
        RouterError: ROUTER_WEIGHTS for anything malformed, or of a type outside `DTYPES`.
    """
    from safetensors import SafetensorError
    from safetensors import numpy as safetensors_numpy

    try:
        tensors: dict[str, NDArray[Any]] = safetensors_numpy.load(data)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise RouterError("ROUTER_WEIGHTS", f"{WEIGHTS_NAME}: {error}") from None
    for name, tensor in tensors.items():
        if tensor.dtype.name not in DTYPES:
            raise RouterError("ROUTER_WEIGHTS", f"tensor {name} has type {tensor.dtype.name}", allowed=sorted(DTYPES))
    return tensors


def write_strategy_files(files: StrategyFiles) -> dict[str, bytes]:
    """The bytes that `read_strategy_files` reads; equal content gives equal bytes."""
    from safetensors import numpy as safetensors_numpy

    tensors = {name: np.ascontiguousarray(value) for name, value in sorted(files.tensors.items())}
    return {
        PARAMETERS_NAME: documents.write_json(dict(files.parameters)),
        WEIGHTS_NAME: safetensors_numpy.save(tensors),
    }
