"""A router's scores, computed in the confined worker: no network of a stranger is parsed in this process."""

from __future__ import annotations

import numpy as np

from appliance import documents
from appliance.artifact import ArtifactFiles, router_metadata
from appliance.errors import IntakeError
from appliance.intake.sandbox import Limits, run
from appliance.routers.loading import read_tensors
from appliance.routers.strategies import Floats, Prompts


def score(artifact: ArtifactFiles, prompts: Prompts, *, limits: Limits, alone: bool = False) -> Floats:
    """Let a router score prompts.

    Args:
        artifact: the router.
        prompts: texts and vectors.
        limits: of the confined worker.
        alone: one at a time, as a gateway does: a network may well tell a trial's hundreds from one.

    Returns:
        Shape (n, labels), finite.

    Raises:
        IntakeError: INTAKE_DIMENSIONS, INTAKE_CONVERSION_KILLED, INTAKE_SANDBOX.
        ArtifactError, RouterError: its own loader refuses it.
    """
    from safetensors import numpy as safetensors_numpy

    names = sorted(artifact.files)
    asked = {"kind": "router", "names": names, "texts": list(prompts.texts), "alone": alone}
    points = safetensors_numpy.save({"probe": prompts.embeddings})
    answer = run([documents.write_json(asked), points, *(artifact.files[name] for name in names)], limits=limits)
    labels = len(router_metadata(artifact).labels)
    scores = read_tensors(answer.parts[0]).get("scores") if len(answer.parts) == 1 else None
    if scores is None or scores.shape != (len(prompts), labels) or not np.isfinite(scores).all():
        raise IntakeError("INTAKE_CONVERSION_KILLED", "the trial gave no readable scores")
    return np.asarray(scores, np.float32)
