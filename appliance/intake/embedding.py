"""An encoder's vectors, computed in the confined worker, and what can be told of them before anybody relies on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from appliance import documents
from appliance.artifact import ArtifactFiles, encoder_metadata
from appliance.errors import IntakeError
from appliance.intake.behaviour import Probe
from appliance.intake.sandbox import Limits, run
from appliance.routers.loading import read_tensors
from appliance.routers.strategies import Floats

SAME = 0.9999  # cosine beyond which two prompts are not told apart
MAXIMUM_SAME = 0.5  # part of the pairs


def embed(artifact: ArtifactFiles, texts: Sequence[str], *, limits: Limits) -> tuple[Floats, float]:
    """Let an encoder embed texts, and one as long as it takes.

    Returns:
        Shape (n, dimensions), finite; and the milliseconds of one text in the confined worker.

    Raises:
        IntakeError: INTAKE_CONVERSION_KILLED (a tokenizer that never ends, a network that grows), INTAKE_SANDBOX.
        ArtifactError, RouterError: its own loader refuses it.
    """
    names = sorted(artifact.files)
    asked = {"kind": "encoder", "names": names, "texts": list(texts)}
    answer = run([documents.write_json(asked), *(artifact.files[name] for name in names)], limits=limits)
    vectors = read_tensors(answer.parts[0]).get("vectors") if len(answer.parts) == 1 else None
    shape = (len(texts), encoder_metadata(artifact).dimensions)
    took = answer.report.get("ms_a_text")
    readable = vectors is not None and vectors.shape == shape and np.isfinite(vectors).all()
    if vectors is None or not readable or not isinstance(took, int | float):
        raise IntakeError("INTAKE_CONVERSION_KILLED", "the trial gave no readable vectors")
    return np.asarray(vectors, np.float32), round(float(took), 2)


def judge(vectors: Floats, artifact: ArtifactFiles, zone: Probe | None, *, ms_a_text: float) -> dict[str, Any]:
    """Describe an encoder; refuse one that does not tell prompts apart or is not what it says.

    Args:
        vectors: of the recorded prompts.
        artifact: the encoder.
        zone: the same prompts through the zone's encoder of today, where there is one.
        ms_a_text: as `embed` measured it.

    Returns:
        `prompts`, `same` (part of the pairs that it does not tell apart), `ms_a_text`, and `neighbours_kept`: for which
        part of the prompts the nearest other prompt is the one that the zone's encoder finds.

    Raises:
        IntakeError: INTAKE_BEHAVIOUR.
    """
    lengths = np.linalg.norm(vectors, axis=1)
    if (lengths < 1e-6).any() or (encoder_metadata(artifact).normalize and not np.allclose(lengths, 1.0, atol=1e-2)):
        raise IntakeError(
            "INTAKE_BEHAVIOUR",
            "its vectors have not the length it says they have",
            shortest=round(float(lengths.min()), 4),
            longest=round(float(lengths.max()), 4),
        )
    alike = _cosines(vectors)
    same = float(np.mean(alike[np.triu_indices(len(vectors), 1)] > SAME))
    if same > MAXIMUM_SAME:
        raise IntakeError(
            "INTAKE_BEHAVIOUR",
            f"it does not tell {same:.0%} of the pairs of recorded prompts apart",
            same=round(same, 4),
            limit=MAXIMUM_SAME,
        )
    report: dict[str, Any] = {"prompts": len(vectors), "same": round(same, 4), "ms_a_text": ms_a_text}
    if zone is None:
        return report
    kept = _nearest(alike) == _nearest(_cosines(zone.prompts.embeddings))
    return report | {"neighbours_kept": round(float(np.mean(kept)), 4), "compared_with": zone.encoder_digest}


def readable(report: dict[str, Any]) -> list[str]:
    """The same for a person."""
    lines = [
        f"on {report['prompts']} recorded prompts:",
        f"  pairs it does not tell apart {report['same']:6.1%}",
        f"  a prompt takes {report['ms_a_text']:.2f} ms in the confined worker",
    ]
    if "neighbours_kept" in report:
        lines.append(f"  nearest prompt as the zone's encoder finds it {report['neighbours_kept']:6.1%}")
    return [*lines, "  routers must be fitted with this very encoder before they can use it"]


def _cosines(vectors: Floats) -> Floats:
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return np.asarray(unit @ unit.T, np.float32)


def _nearest(cosines: Floats) -> Any:
    others = cosines.copy()
    np.fill_diagonal(others, -np.inf)
    return others.argmax(axis=1)
