"""Trust metadata, signing keys, the clock, TLS certificates: everything that ends on a known day."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from appliance.errors import ApplianceError, TrustError
from appliance.gateway import calendar
from appliance.operations.doctor.finding import Finding, critical, fine, unknown, warning
from appliance.operations.doctor.snapshot import Snapshot
from appliance.trust import clock as trusted_clock
from appliance.trust import expiry
from appliance.trust.expiry import Nearness

WRITTEN = datetime(2026, 1, 1, tzinfo=UTC)


def metadata(snapshot: Snapshot) -> Iterator[Finding]:
    """Does the trust metadata end soon?"""
    name = "trust-metadata"
    if isinstance(snapshot.trust, ApplianceError):
        yield unknown(name, snapshot.trust)
        return
    role, end = min(snapshot.trust.expires.items(), key=lambda item: item[1])
    left, near = end - snapshot.time, expiry.METADATA.nearness(end, now=snapshot.time)
    evidence: dict[str, Any] = {"role": role, "expires": end, "version": snapshot.trust.versions.get(role)}
    if near is Nearness.ENDED:
        yield critical(name, "OPERATION_TRUST_EXPIRED", f"trust metadata {role} ended {_ago(left)}", **evidence)
    elif near is Nearness.SOON:
        yield warning(name, "OPERATION_TRUST_EXPIRES", f"trust metadata {role} ends in {_days(left)}", **evidence)
    else:
        yield fine(name, f"trust metadata is good for {_days(left)} ({role} ends first)", **evidence)


def keys(snapshot: Snapshot) -> Iterator[Finding]:
    """Does a CA, log or time-stamping key end soon?"""
    name = "trust-keys"
    if isinstance(snapshot.trust, ApplianceError):
        return
    ending = {key: end for key, end in snapshot.trust.keys_expire.items() if end is not None}
    if not ending:
        yield fine(name, f"{len(snapshot.trust.keys_expire)} signing keys, none with an end")
        return
    key, end = min(ending.items(), key=lambda item: item[1])
    left, near = end - snapshot.time, expiry.KEY.nearness(end, now=snapshot.time)
    if near is not Nearness.FAR:
        said = f"ended {_ago(left)}" if near is Nearness.ENDED else f"ends in {_days(left)}"
        yield warning(name, "OPERATION_KEY_EXPIRES", f"{key} {said}", key=key, expires=end)
    else:
        yield fine(name, f"signing keys are good for {_days(left)} ({key} ends first)", key=key, expires=end)


def clock(snapshot: Snapshot) -> Iterator[Finding]:
    """Can the clock be right?"""
    name = "clock"
    if isinstance(snapshot.trust, ApplianceError):  # told by trust-metadata; our own age is left to compare with
        if snapshot.at < WRITTEN:
            text = f"the clock says {snapshot.at:%Y-%m-%d %H:%M}, before this software was written"
            yield critical(name, "OPERATION_CLOCK", text, clock=snapshot.at)
        return
    floor = snapshot.trust.floor
    try:
        trusted_clock.checked(snapshot.at, floor)
    except TrustError as error:
        yield critical(name, "OPERATION_CLOCK", error.cause, clock=snapshot.at, proven=floor)
        return
    behind = floor - snapshot.at
    if behind > timedelta(minutes=5):
        text = f"the clock is {_span(behind)} behind a time that is proven"
        yield warning(name, "OPERATION_CLOCK", text, clock=snapshot.at, proven=floor)
    else:
        yield fine(name, "the clock is not before any proven time", clock=snapshot.at, proven=floor)


def certificates(snapshot: Snapshot) -> Iterator[Finding]:
    """Are the TLS certificates whole, of our chain and not about to end?"""
    name = "certificates"
    if isinstance(snapshot.certificates, ApplianceError):
        yield unknown(name, snapshot.certificates)
        return
    for found in snapshot.certificates:
        left = found.not_after - snapshot.time
        near = expiry.CERTIFICATE.nearness(found.not_after, now=snapshot.time, begin=found.not_before)
        evidence: dict[str, Any] = {
            "file": found.path,
            "subject": found.subject,
            "issuer": found.issuer,
            "ends": found.not_after,
        }
        label, remedy = f"{found.use} certificate", calendar.renewal(found.use, found.path)
        if found.problem:
            yield critical(name, "OPERATION_CERTIFICATE_CHAIN", f"{label}: {found.problem}", **evidence)
        elif near is Nearness.ENDED:
            yield critical(
                name, "OPERATION_CERTIFICATE_EXPIRED", f"{label} ended {_ago(left)}", remedy=remedy, **evidence
            )
        elif found.not_before > snapshot.time + timedelta(minutes=5):
            yield critical(
                name, "OPERATION_CERTIFICATE_CHAIN", f"{label} is not valid before {found.not_before}", **evidence
            )
        elif near is Nearness.URGENT:
            yield critical(
                name, "OPERATION_CERTIFICATE_EXPIRES", f"{label} ends in {_days(left)}", remedy=remedy, **evidence
            )
        elif near is Nearness.SOON:
            yield warning(
                name, "OPERATION_CERTIFICATE_EXPIRES", f"{label} ends in {_days(left)}", remedy=remedy, **evidence
            )
        else:
            yield fine(name, f"{label} is good for {_days(left)}", **evidence)
    if not snapshot.certificates:
        yield fine(name, "no TLS certificates are configured (the gateway listens on loopback only)")


def _days(span: timedelta) -> str:
    return _span(span)


def _ago(span: timedelta) -> str:
    return f"{_span(-span)} ago"


def _span(span: timedelta) -> str:
    seconds = int(span.total_seconds())
    if seconds >= 2 * 86400:
        return f"{seconds // 86400} days"
    if seconds >= 2 * 3600:
        return f"{seconds // 3600} hours"
    return f"{max(seconds // 60, 0)} minutes"
