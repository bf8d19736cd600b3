"""The installed release against its signed manifest: payload by the manifest, environment by the verified wheels."""

from __future__ import annotations

import zipfile
from datetime import datetime
from pathlib import Path

from appliance.bundle.comparison import compare_environment, compare_payload
from appliance.bundle.releases import Release, installed_releases
from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.stage0.media import MANIFEST, SIGNATURE
from appliance.errors import ApplianceError, OperationError
from appliance.files import read_regular
from appliance.operations.doctor.snapshot import Drift
from appliance.trust.store import TrustStore
from appliance.trust.verification import verify_statement

_MAX_DOCUMENT = 64 * 1024 * 1024


def drift(prefix: Path, *, now: datetime, deep: bool) -> Drift | ApplianceError | None:
    """Compare the active release; None where none is installed below the prefix.

    Args:
        prefix: of the installation.
        now: for the signature's verification.
        deep: hash every byte (about a second a gigabyte) instead of names, sizes and small files.
    """
    home = Prefix(prefix)
    active = home.active()
    if active is None:
        return None
    try:
        release = next((r for r in installed_releases(home) if r.id == active), None)
        if release is None:
            return OperationError("OPERATION_DRIFT", f"{home.current} points to {active}, which is no whole release")
        return _compare(home, release, now=now, deep=deep)
    except ApplianceError as error:
        return error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        return OperationError("OPERATION_DRIFT", f"release {active} cannot be read: {error}", release=active)


def unfinished(prefix: Path) -> str | None:
    """The release whose installation was begun and not finished."""
    pending = Prefix(prefix).transaction()
    return pending.release if pending else None


def _compare(home: Prefix, release: Release, *, now: datetime, deep: bool) -> Drift:
    folder = home.release(release.id)
    problem: ApplianceError | None = None
    try:
        store = TrustStore.open(home.state / "trust")
        manifest_bytes = read_regular(folder / MANIFEST, max_bytes=_MAX_DOCUMENT)
        signature = read_regular(folder / SIGNATURE, max_bytes=_MAX_DOCUMENT)
        verify_statement(manifest_bytes, signature, kind="release", material=store.material(now=now), at=now)
    except ApplianceError as error:
        problem = error
    payload = compare_payload(folder, release.manifest, deep=deep)
    environment = compare_environment(folder, payload.differing, deep=deep)
    changed, missing, foreign = (
        tuple(sorted(getattr(payload, kind) + getattr(environment, kind))) for kind in ("changed", "missing", "foreign")
    )
    compared = payload.compared + environment.compared
    return Drift(release.id, release.signer, compared, deep, changed, missing, foreign, problem)
