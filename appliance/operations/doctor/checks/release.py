"""The installed release: is it what was signed, is an installation half done?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from appliance.errors import ApplianceError
from appliance.operations.doctor.finding import Finding, critical, fine, unknown, warning
from appliance.operations.doctor.snapshot import Snapshot

SHOWN = 10  # paths of each kind in the evidence


def drift(snapshot: Snapshot) -> Iterator[Finding]:
    """Do the installed files differ from the signed manifest?"""
    name = "drift"
    found = snapshot.drift
    if found is None:
        return
    if isinstance(found, ApplianceError):
        yield unknown(name, found)
        return
    if found.signature_problem is not None:
        refusal = found.signature_problem
        text = f"the manifest of {found.release} does not verify: {refusal.code}: {refusal.cause}"
        yield critical(name, "OPERATION_DRIFT", text, release=found.release)
    differing: dict[str, Any] = {
        kind: list(paths[:SHOWN])
        for kind, paths in (("changed", found.changed), ("missing", found.missing), ("foreign", found.foreign))
        if paths
    }
    if differing:
        total = len(found.changed) + len(found.missing) + len(found.foreign)
        by = f"{found.signer} signed" if found.signature_problem is None else "its manifest says"
        text = f"{total} files of release {found.release} are not what {by}"
        yield critical(name, "OPERATION_DRIFT", text, **differing)
    elif found.signature_problem is None:
        how = "to the byte" if found.deep else "in name and size, small files to the byte"
        yield fine(name, f"{found.compared} files are as {found.signer} signed them ({how})", release=found.release)


def installation(snapshot: Snapshot) -> Iterator[Finding]:
    """Was an installation begun and not finished?"""
    if snapshot.unfinished is not None:
        text = f"the installation of {snapshot.unfinished} was begun and not finished"
        yield warning("installation", "OPERATION_INSTALL_UNFINISHED", text, release=snapshot.unfinished)
    else:
        yield fine("installation", "no installation is half done")
