"""From a producer's artifact to one that the zone can sign: legacy files become tensors, and are shown to agree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from appliance import documents
from appliance.artifact import METADATA_NAMES, ArtifactFiles, RouterMetadata, from_files, router_metadata
from appliance.errors import IntakeError, RouterError
from appliance.files import sha256_hex
from appliance.intake.behaviour import Probe
from appliance.intake.formats import Legacy
from appliance.intake.sandbox import Answer, Limits, run
from appliance.intake.scoring import score
from appliance.routers.loading import read_tensors, write_strategy_files
from appliance.routers.strategies import Floats, StrategyFiles

MINIMUM_AGREEMENT = 0.99


def convert(
    artifact: ArtifactFiles, legacy: Mapping[str, Legacy], probe: Probe, *, limits: Limits
) -> tuple[ArtifactFiles, dict[str, Any]]:
    """Make the artifact that will be signed.

    Args:
        artifact: verified, its formats checked.
        legacy: the file that must be converted; none leaves the content as it is.
        probe: recorded prompts of the zone's encoder.
        limits: of the confined conversion.

    Returns:
        The unsigned artifact, and what to record: `original`, `family`, `agreement`, `probes`, `walls`.

    Raises:
        IntakeError: INTAKE_DIMENSIONS, INTAKE_CONVERSION, INTAKE_CONVERSION_KILLED, INTAKE_AGREEMENT, INTAKE_SANDBOX.
        ArtifactError, RouterError: the metadata, or the tensors taken, are refused.
    """
    metadata = router_metadata(artifact)
    if metadata.encoder_digest != probe.encoder_digest:
        raise IntakeError(
            "INTAKE_DIMENSIONS",
            "the router was fitted with another encoder than the zone's",
            router=metadata.encoder_digest,
            zone=probe.encoder_digest,
        )
    if not legacy:
        return from_files(dict(artifact.files)), {}
    if len(legacy) > 1:
        raise IntakeError("INTAKE_CONVERSION", f"one model a router, not {len(legacy)}", files=sorted(legacy))
    [(name, kind)] = legacy.items()
    wide = probe.widened
    answer = run(_job(artifact.files[name], kind, metadata, wide.embeddings), limits=limits)
    strategy, original_scores = _taken(answer, len(wide), len(metadata.labels))
    files = {file: data for file, data in artifact.files.items() if file != name} | write_strategy_files(strategy)
    family = str(answer.report.get("family", ""))
    record = {"file": name, "sha256": sha256_hex(artifact.files[name]), "original": str(answer.report.get("original"))}
    converted = from_files(files | {METADATA_NAMES["router"]: _metadata(files, metadata, family, record)})
    agreement = _agreement(score(converted, wide, limits=limits), original_scores)
    return converted, {**record, "family": family, "agreement": agreement, "probes": len(wide), "walls": answer.walls}


def _job(model: bytes, kind: Legacy, metadata: RouterMetadata, points: Any) -> list[bytes]:
    from safetensors import numpy as safetensors_numpy

    asked = {"kind": kind, "labels": list(metadata.labels), "hyperparameters": metadata.hyperparameters}
    return [documents.write_json(asked), model, safetensors_numpy.save({"probe": points})]


def _taken(answer: Answer, probes: int, labels: int) -> tuple[StrategyFiles, Any]:
    """The worker's tensors, read like a stranger's."""
    parameters = answer.report.get("parameters")
    if len(answer.parts) != 1 or not isinstance(parameters, dict):
        raise IntakeError("INTAKE_CONVERSION_KILLED", "the conversion gave no readable answer")
    try:
        tensors = read_tensors(answer.parts[0])
    except RouterError as error:
        raise IntakeError("INTAKE_CONVERSION", error.cause) from None
    scores = tensors.pop("probe_scores", None)
    if scores is None or scores.shape != (probes, labels) or not np.isfinite(scores).all():
        raise IntakeError("INTAKE_CONVERSION", "the original gave no finite scores on the probe set")
    return StrategyFiles(parameters, tensors), scores


def _metadata(files: Mapping[str, bytes], old: RouterMetadata, family: str, record: dict[str, str]) -> bytes:
    what = METADATA_NAMES["router"]
    value = old.model_dump(mode="json")
    value["strategy"] = family
    value["hyperparameters"] = {**value["hyperparameters"], "converted_from": record}
    value["files"] = {file: sha256_hex(data) for file, data in sorted(files.items()) if file != what}
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode("utf-8")


def _agreement(ours: Floats, original: Floats) -> float:
    """The part of the probe set on which both prefer the same label; ties in the original count for either."""
    rows = np.arange(len(ours))
    best = original.max(axis=1)
    same = original[rows, ours.argmax(axis=1)] >= best - 1e-6 * np.maximum(1.0, np.abs(best))
    agreement = float(np.mean(same))
    if agreement < MINIMUM_AGREEMENT:
        raise IntakeError(
            "INTAKE_AGREEMENT",
            f"the converted router decides like the original on {agreement:.1%} of {len(ours)} probes",
            agreement=round(agreement, 4),
            required=MINIMUM_AGREEMENT,
            differing_probes=[int(row) for row in np.flatnonzero(~same)[:10]],
        )
    return round(agreement, 6)
