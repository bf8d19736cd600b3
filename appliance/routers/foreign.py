"""Models in other formats than ours: skops, and, where the zone's signed policy names them, pickle and PyTorch.

The caller hands in the formats that a policy names; nothing else opens these doors. The bytes are those that were
verified, in memory. scikit-learn and skops are imported only here and only then; torch never is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import PurePosixPath

from appliance.artifact import RouterMetadata
from appliance.errors import RouterError
from appliance.routers import pickles, skops_file, torch_file
from appliance.routers.families.estimator import Estimator
from appliance.routers.families.mlp import Mlp
from appliance.routers.strategies import Floats, Strategy, StrategyFiles

FORMATS: Mapping[str, str] = {".skops": "skops", ".pkl": "pickle", ".pt": "torch"}  # suffix -> name in the policy


def model_file(files: Mapping[str, bytes]) -> str | None:
    """The file that holds a model of another format; None for a router of our own.

    Raises:
        RouterError: ROUTER_MODEL where there are two.
    """
    found = sorted(name for name in files if PurePosixPath(name).suffix.lower() in FORMATS)
    if len(found) > 1:
        raise RouterError("ROUTER_MODEL", "a router is one model", files=found[:10])
    return found[0] if found else None


def load(name: str, data: bytes, metadata: RouterMetadata, *, formats: Collection[str]) -> Strategy:
    """Build the strategy of a model file.

    Args:
        name, data: the file, verified.
        metadata: of its router.
        formats: named by the zone's policy.

    Raises:
        RouterError: ROUTER_FORMAT where the policy does not name its format; ROUTER_BACKEND, ROUTER_MODEL,
            ROUTER_MODEL_IMPORT.
    """
    kind = FORMATS[PurePosixPath(name).suffix.lower()]
    if kind not in formats:
        raise RouterError(
            "ROUTER_FORMAT", f"{name}: no signed policy names the format {kind}", format=kind, named=sorted(formats)
        )
    labels = tuple(metadata.labels)
    if kind == "torch":
        return _perceptron(torch_file.read_state_dict(data, what=name), labels, metadata, name)
    try:
        estimator = skops_file.load(data, what=name) if kind == "skops" else pickles.load(data, what=name)
    except ImportError as error:
        raise RouterError(
            "ROUTER_BACKEND", f"{name} needs scikit-learn: {str(error)[:200]}", package=error.name
        ) from None
    return Estimator(labels, estimator, what=name)


def _perceptron(
    tensors: Mapping[str, Floats], labels: tuple[str, ...], metadata: RouterMetadata, name: str
) -> Strategy:
    """Linear layers with ReLU between them; a state dict does not say so, therefore `router.yaml` has to."""
    rest = dict(tensors)
    plain: dict[str, Floats] = {}
    for number, key in enumerate([key for key in rest if key.endswith(".weight")]):
        bias = rest.pop(f"{key.removesuffix('weight')}bias", None)
        weights = rest.pop(key)
        if weights.ndim != 2 or bias is None:
            raise RouterError("ROUTER_MODEL", f"{name}: {key} is no linear layer with a bias")
        plain |= {f"{number}.weights": weights.T.copy(), f"{number}.bias": bias}
    if rest or not plain:
        raise RouterError("ROUTER_MODEL", f"{name} holds other things than linear layers", found=sorted(rest)[:10])
    if len(plain) > 2 and metadata.hyperparameters.get("activation") != "relu":
        raise RouterError("ROUTER_MODEL", f"{name}: router.yaml must say `activation: relu` among the hyperparameters")
    return Mlp.load(StrategyFiles({}, plain), labels)
