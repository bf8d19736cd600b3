"""Where a release comes from: an in-toto statement with SLSA provenance v1, reproducible, signed with the release."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from appliance import documents
from appliance.vendoring.locks import Lock
from appliance.vendoring.models import ModelPin
from appliance.vendoring.sbom import purl
from appliance.vendoring.wheel import Inspection

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "https://appliance.internal/build/release/v1"


@dataclass(frozen=True)
class Build:
    """How the release was made.

    Attributes:
        profile, target: what was built.
        version: of the appliance.
        source_revision: commit (hex) of the source tree, or None where it is not a repository.
        source_changed: whether the tree held changes that no commit names.
        builder: identity of who built; the release's signer vouches for it.
        at: the release's time (SOURCE_DATE_EPOCH), UTC.
    """

    profile: str
    target: str
    version: str
    source_revision: str | None
    source_changed: bool
    builder: str
    at: datetime


def provenance(
    build: Build,
    subjects: Mapping[str, str],
    *,
    wheels: Sequence[Inspection],
    locks: Iterable[Lock],
    models: Mapping[str, ModelPin],
) -> bytes:
    """Write the statement.

    Args:
        build: how the release was made.
        subjects: member of the release -> SHA-256 (hex); what the statement is about.
        wheels: as admitted.
        locks: from which they were chosen.
        models: name -> pin.

    Returns:
        Canonical JSON (in-toto Statement v1, SLSA provenance v1).
    """
    dependencies: list[dict[str, Any]] = [
        {"name": f"vendor/requirements/{lock.name}", "digest": {"sha256": lock.digest}} for lock in locks
    ]
    if build.source_revision:
        dependencies.append({"name": "source", "digest": {"gitCommit": build.source_revision}})
    dependencies += [
        {"name": wheel.filename, "uri": purl(wheel), "digest": {"sha256": wheel.sha256}}
        for wheel in sorted(wheels, key=lambda wheel: wheel.filename)
    ]
    dependencies += [
        {"name": f"{name}/{file}", "uri": f"pkg:pypi/{pin.package}@{pin.version}", "digest": {"sha256": digest}}
        for name, pin in sorted(models.items())
        for file, digest in sorted(pin.files.items())
    ]
    moment = build.at.strftime("%Y-%m-%dT%H:%M:%SZ")
    return documents.write_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(subjects.items())],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "buildDefinition": {
                    "buildType": BUILD_TYPE,
                    "externalParameters": {
                        "profile": build.profile,
                        "target": build.target,
                        "version": build.version,
                        "sourceChanged": build.source_changed,
                    },
                    "resolvedDependencies": dependencies,
                },
                "runDetails": {
                    "builder": {"id": build.builder},
                    "metadata": {"startedOn": moment, "finishedOn": moment},
                },
            },
        }
    )
