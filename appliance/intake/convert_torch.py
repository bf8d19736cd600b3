"""PyTorch state dicts, taken apart inside the confined worker: perceptrons of linear layers and ReLU.

A state dict says nothing of what lies between its layers, so the producer does: `activation: relu` in the router's
hyperparameters. What the layers then decide on the probe set is asked of torch itself.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from appliance.errors import IntakeError
from appliance.intake.taken import Taken
from appliance.routers.loading import read_tensors

MAX_LAYERS = 8


def warm_up() -> None:
    """Import all that loading will need, by loading a state dict of our own."""
    import torch

    torch.set_num_threads(1)
    own = {
        "0.weight": torch.zeros(3, 4),
        "0.bias": torch.zeros(3),
        "2.weight": torch.zeros(2, 3),
        "2.bias": torch.zeros(2),
    }
    buffer = io.BytesIO()
    torch.save(own, buffer)
    take_apart(buffer.getvalue(), ("a", "b"), {"activation": "relu"}, np.zeros((2, 4), np.float32))


def work(asked: Mapping[str, Any], parts: list[bytes]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Do a conversion job; see `worker`."""
    model, probe = parts
    return take_apart(model, tuple(asked["labels"]), asked["hyperparameters"], read_tensors(probe)["probe"]).answer()


def take_apart(
    data: bytes, labels: tuple[str, ...], hyperparameters: dict[str, Any], probe: NDArray[np.float32]
) -> Taken:
    """Load a state dict, ask it, and express it as a perceptron.

    Args:
        data: the `.pt` file.
        labels: the router's labels, in the order of the last layer's outputs.
        hyperparameters: must say `activation: relu` where there is more than one layer.
        probe: shape (n, d), embeddings.

    Raises:
        IntakeError: INTAKE_CONVERSION.
    """
    import torch

    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    layers = _layers(state)
    if len(layers) > 1 and hyperparameters.get("activation") != "relu":
        raise IntakeError("INTAKE_CONVERSION", "router.yaml must say `activation: relu` among the hyperparameters")
    width = probe.shape[1]
    for weights, _bias in layers:
        if weights.shape[1] != width:
            raise IntakeError("INTAKE_CONVERSION", f"a layer takes {weights.shape[1]} numbers and is given {width}")
        width = weights.shape[0]
    if width != len(labels):
        raise IntakeError("INTAKE_CONVERSION", f"the last layer gives {width} scores for {len(labels)} labels")
    values = torch.from_numpy(np.array(probe, np.float32))
    for number, (weights, bias) in enumerate(layers):
        values = values @ weights.T + bias
        if number + 1 < len(layers):
            values = torch.relu(values)
    tensors = {f"{i}.weights": w.T.contiguous().numpy() for i, (w, _) in enumerate(layers)}
    tensors |= {f"{i}.bias": b.contiguous().numpy() for i, (_, b) in enumerate(layers)}
    return Taken("mlp", {}, tensors, values.contiguous().numpy(), f"torch state dict of {len(layers)} linear layers")


def _layers(state: Any) -> list[tuple[Any, Any]]:
    import torch

    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise IntakeError("INTAKE_CONVERSION", "it is no state dict of tensors")
    layers: list[tuple[Any, Any]] = []
    rest = {str(name): value.to(torch.float32) for name, value in state.items()}
    for name in [one for one in rest if one.endswith(".weight")]:
        weights, bias = rest.pop(name), rest.pop(name.removesuffix("weight") + "bias", None)
        if weights.ndim != 2:
            raise IntakeError("INTAKE_CONVERSION", f"{name} is no linear layer")
        bias = torch.zeros(weights.shape[0]) if bias is None else bias
        if bias.shape != (weights.shape[0],):
            raise IntakeError("INTAKE_CONVERSION", f"{name} and its bias do not fit")
        layers.append((weights, bias))
    if rest or not 1 <= len(layers) <= MAX_LAYERS:
        raise IntakeError(
            "INTAKE_CONVERSION", f"layers that are not linear: {sorted(rest)[:5]}" if rest else "no layers"
        )
    return layers
