"""The way back to an older release: only by an authorisation that the root key holders signed for this host, once."""

from __future__ import annotations

from datetime import datetime

from appliance.bundle.releases import Release, installed_releases
from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.stage0.manifest import Manifest
from appliance.errors import InstallError
from appliance.files import read_regular, write_atomic
from appliance.trust.store import TrustStore

AUTHORISED = "install/authorised-downgrade"  # below PREFIX/state: the digest of the one release


def _current(prefix: Prefix) -> Release | None:
    return next((release for release in installed_releases(prefix) if release.current), None)


def is_older(prefix: Prefix, manifest: Manifest) -> bool:
    """An old release, genuine but replaced for a reason, does not come back by being carried in again."""
    current = _current(prefix)
    return current is not None and current.manifest.name == manifest.name and manifest.epoch < current.manifest.epoch


def refused_downgrade(prefix: Prefix, manifest: Manifest) -> InstallError:
    """The refusal of an older release, with both named."""
    current = _current(prefix)
    return InstallError(
        "INSTALL_DOWNGRADE",
        f"the release is older (epoch {manifest.epoch}) than the current one",
        current=current.id if current else None,
        offered=manifest.release_id,
    )


def is_authorised(prefix: Prefix, manifest: Manifest) -> bool:
    """Whether an installation of this very release was authorised and then interrupted: it may be taken up again."""
    marker = prefix.state / AUTHORISED
    return marker.is_file() and read_regular(marker, max_bytes=128).decode("ascii", "replace") == manifest.digest


def authorise(prefix: Prefix, manifest: Manifest, token: bytes, now: datetime) -> None:
    """Use the authorisation up, then note for which release: killed between the two, nothing is authorised.

    Raises:
        TrustError: what `TrustStore.redeem` refuses.
    """
    TrustStore.open(prefix.state / "trust").redeem(token, action="downgrade", version=manifest.version, now=now)
    write_atomic(prefix.state / AUTHORISED, manifest.digest.encode(), mode=0o600)


def settle(prefix: Prefix) -> None:
    """Forget the note, once the release it was for is installed."""
    (prefix.state / AUTHORISED).unlink(missing_ok=True)
