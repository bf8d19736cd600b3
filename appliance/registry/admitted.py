"""What may lie in a registry and be served from it: artifacts that were signed after examination, not by their maker.

A producer's signature says who made an artifact; it counts at the import border and nowhere behind it. Otherwise
whoever may write to the registry could carry a producer's file around the border, two officers and all.
"""

from __future__ import annotations

from datetime import datetime

from appliance.artifact import ArtifactFiles
from appliance.errors import RegistryError
from appliance.trust.verification import TrustMaterial, Verdict, verify_artifact

PRODUCER = "producer"  # the policy's role for what is handed in


def verify_admitted(artifact: ArtifactFiles, *, material: TrustMaterial, at: datetime) -> Verdict:
    """Verify an artifact as `verify_artifact` does, and that it is past the border.

    Raises:
        TrustError, ArtifactError: as `verify_artifact`.
        RegistryError: REGISTRY_NOT_ADMITTED for a signature of its producer alone.
    """
    verdict = verify_artifact(artifact, material=material, at=at)
    if verdict.role == PRODUCER:
        raise RegistryError(
            "REGISTRY_NOT_ADMITTED",
            f"{verdict.identity} made and signed it; nobody has admitted it",
            identity=verdict.identity,
            digest=artifact.digest,
        )
    return verdict
