"""The network: who can come in, and does anything get out?"""

from __future__ import annotations

from collections.abc import Iterator

from appliance.operations.doctor.finding import Finding, critical, fine, warning
from appliance.operations.doctor.snapshot import Snapshot

USUAL = frozenset({22})  # administration


def ports(snapshot: Snapshot) -> Iterator[Finding]:
    """What listens beyond loopback that the configuration does not name?"""
    name = "ports"
    strange = [
        listener
        for listener in snapshot.listeners
        if not listener.loopback and listener.port not in snapshot.expected_ports | USUAL
    ]
    for listener in strange:
        held = f" ({listener.command})" if listener.command else ""
        text = f"something else listens on {listener.address} port {listener.port}{held}"
        yield warning(name, "OPERATION_LISTENING", text, port=listener.port, command=listener.command)
    if not strange:
        yield fine(name, "nothing but the appliance is reachable from outside", ports=sorted(snapshot.expected_ports))


def egress(snapshot: Snapshot) -> Iterator[Finding]:
    """Can this host reach anything it must not?"""
    name = "egress"
    escaped = [attempt for attempt in snapshot.egress if attempt.escaped]
    for attempt in escaped:
        text = f"{attempt.target} could be reached from here"
        yield critical(name, "OPERATION_EGRESS", text, target=attempt.target, outcome=attempt.outcome)
    if escaped or not snapshot.egress:
        return
    outcomes = {attempt.target: attempt.outcome for attempt in snapshot.egress}
    if "routed" in outcomes.values():
        text = "a default route exists, so that the firewall keeps packets in; prove it with `appliance doctor --probe`"
        yield fine(name, text, **outcomes)
    elif set(outcomes.values()) == {"no route"}:
        yield fine(name, "no route leads out of the zone", **outcomes)
    else:
        yield fine(name, f"none of {len(outcomes)} outside addresses can be reached", **outcomes)
