"""A router's first scores, inside the confined worker: a network that grows, crashes or hangs does it there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.artifact import from_files
from appliance.errors import IntakeError, RouterError
from appliance.routers.loading import load_router, read_tensors
from appliance.routers.strategies import FAMILIES, Prompts, family


def warm_up() -> None:
    """Import every family, and let onnxruntime and numpy do what they do only once."""
    from importlib import import_module

    import onnxruntime

    for name in FAMILIES:
        import_module(family(name).__module__)
    rng = np.random.default_rng(0)
    np.linalg.norm(np.einsum("nk,km->nm", rng.normal(size=(3, 3)), rng.normal(size=(3, 3))))
    onnxruntime.InferenceSession(_IDENTITY, providers=["CPUExecutionProvider"]).run(
        None, {"embedding": np.zeros((1, 1), np.float32)}
    )


# ModelProto: one Identity node from `embedding` (n, d) to `scores`, operator set 13
_IDENTITY = bytes.fromhex(
    "08083a530a1d0a09656d62656464696e67120673636f72657322084964656e7469747912036f776e5a170a09656d62656464"
    "696e67120a0a08080112040a000a0062140a0673636f726573120a0a08080112040a000a0042040a00100d"
)


def work(asked: Mapping[str, Any], parts: list[bytes]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Load a router and let it score the probe set; `alone` one prompt at a time, as a gateway asks it.

    Raises:
        IntakeError: INTAKE_DIMENSIONS where it cannot be asked about such vectors.
        ArtifactError, RouterError: it is refused by its own loader.
    """
    probe, *files = parts
    router = load_router(from_files(dict(zip(asked["names"], files, strict=True))))
    points = read_tensors(probe)["probe"]
    prompts = Prompts(tuple(asked["texts"]), points)
    together = (
        [prompts]
        if not asked["alone"]
        else [Prompts((text,), points[i : i + 1]) for i, text in enumerate(prompts.texts)]
    )
    try:
        scores = np.concatenate([router.scores(some) for some in together])
    except RouterError as error:
        if not isinstance(error.__cause__, ValueError | IndexError):  # NumPy's, where dimensions differ
            raise
        raise IntakeError("INTAKE_DIMENSIONS", error.cause) from None
    return {}, {"scores": scores}
