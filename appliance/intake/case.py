"""A case: what was examined, what would be signed, and what a person reads of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from appliance.artifact import ArtifactFiles
from appliance.intake import behaviour, embedding


@dataclass(frozen=True)
class Case:
    """An examined source, waiting for approvals or admitted.

    Attributes:
        identity: sixteen hex digits.
        report: what the examination found, JSON.
        artifact: what would be signed.
    """

    identity: str
    report: dict[str, Any]
    artifact: ArtifactFiles


def describe(case: Case) -> list[str]:
    """A case for a person to judge."""
    report = case.report
    is_router = report["kind"] == "router"
    what = report["strategy"] if is_router else f"encoder of {report['dimensions']} numbers"
    lines = [
        f"case {case.identity}: {report['name']} {report['version']} ({what})",
        f"handed in by {report['source']['producer']}, signed {report['source']['signed_at']}",
    ]
    if conversion := report["conversion"]:
        lines.append(
            f"converted from {conversion['original']} to {conversion['family']}: decides alike on"
            f" {conversion['agreement']:.2%} of {conversion['probes']} probes (behind {', '.join(conversion['walls'])})"
        )
    lines += [f"{scanner}: {said}" for scanner, said in report["scanners"].items()]
    read = behaviour.readable if is_router else embedding.readable
    return [*lines, *read(report["behaviour"]), f"digest {report['digest']}"]
