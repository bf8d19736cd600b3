"""Every check of the doctor, in the order of its report. A check is a pure function: snapshot in, findings out."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from appliance.operations.doctor.checks import host, network, release, service, trust
from appliance.operations.doctor.finding import Finding
from appliance.operations.doctor.snapshot import Snapshot

Check = Callable[[Snapshot], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (
    service.gateway,
    service.routers,
    service.breaker,
    service.deployments,
    service.registry,
    service.followed,
    trust.metadata,
    trust.keys,
    trust.clock,
    trust.certificates,
    release.drift,
    release.installation,
    host.disk,
    host.permissions,
    host.kernel,
    network.ports,
    network.egress,
)


def examine(snapshot: Snapshot) -> list[Finding]:
    """Run every check over the facts."""
    return [finding for check in CHECKS for finding in check(snapshot)]
