"""Installed releases: listing, going back, clearing away."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from appliance.bundle.stage0.journal import Prefix
from appliance.bundle.stage0.manifest import Manifest, read_manifest
from appliance.bundle.stage0.media import MANIFEST
from appliance.bundle.stage0.refusal import Refused
from appliance.errors import InstallError

MARKER = "release.json"  # written when a release is complete and healthy; a folder without it is no release
KEEP = 2  # the current release and the one before


@dataclass(frozen=True)
class Release:
    """A complete installed release.

    Attributes:
        id: folder name.
        manifest: as it was verified.
        installed: RFC 3339, UTC.
        signer: identity that signed it.
        current: whether it is the one that runs.
    """

    id: str
    manifest: Manifest
    installed: str
    signer: str
    current: bool

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        manifest = self.manifest
        return {
            "release": self.id,
            "version": manifest.version,
            "epoch": manifest.epoch,
            "profile": manifest.profile,
            "digest": manifest.digest,
            "created": manifest.created,
            "installed": self.installed,
            "signer": self.signer,
            "current": self.current,
        }


def installed_releases(prefix: Prefix) -> list[Release]:
    """All complete releases, by time of installation; one whose documents are unreadable is none.

    Raises:
        InstallError: INSTALL_RELEASE_DAMAGED where it is the one that runs.
    """
    found = []
    active = prefix.active()
    if prefix.releases.is_dir():
        for folder in sorted(prefix.releases.iterdir()):
            if (folder / MARKER).is_file():
                try:
                    marker = json.loads((folder / MARKER).read_text("utf-8"))
                    manifest = read_manifest((folder / MANIFEST).read_bytes())
                    release = Release(
                        folder.name, manifest, str(marker["installed"]), str(marker["signer"]), folder.name == active
                    )
                except (OSError, ValueError, KeyError, TypeError, Refused) as error:
                    if folder.name != active:
                        continue
                    said = error.cause if isinstance(error, Refused) else f"{type(error).__name__}: {error}"
                    text = f"the documents of release {active}, which runs, are unreadable"
                    raise InstallError("INSTALL_RELEASE_DAMAGED", text, said=said, path=str(folder)) from None
                found.append(release)
    return sorted(found, key=lambda release: (release.installed, release.id))


def write_marker(prefix: Prefix, release_id: str, *, signer: str, now: datetime) -> None:
    """Make a folder a release."""
    marker = {"installed": now.strftime("%Y-%m-%dT%H:%M:%SZ"), "signer": signer}
    prefix.write(prefix.release(release_id) / MARKER, json.dumps(marker, sort_keys=True) + "\n")


def is_complete(prefix: Prefix, release_id: str) -> bool:
    """Whether a folder is a whole, once healthy release."""
    return (prefix.release(release_id) / MARKER).is_file()


def rollback(prefix: Prefix, *, to: str | None, now: datetime, inherited_lock: int | None = None) -> Release:
    """Point back to the previous release, or to a named one.

    Raises:
        InstallError: INSTALL_NO_PREVIOUS, INSTALL_STATE_NEWER where its state layout is older than the one on the disk.
        Refused: INSTALL_LOCKED.
    """
    with prefix.locked(inherited_lock):
        releases = {release.id: release for release in installed_releases(prefix)}
        target = to or prefix.previous()
        if target is None or target not in releases or target == prefix.active():
            raise InstallError(
                "INSTALL_NO_PREVIOUS",
                f"no release {to!r} to return to" if to else "there is no release before the current one",
                installed=sorted(releases),
                current=prefix.active(),
            )
        check_state(prefix, releases[target].manifest)
        prefix.point_to(target, reason="rollback", now=now)
        return next(release for release in installed_releases(prefix) if release.id == target)


def state_version(prefix: Prefix) -> int:
    """Layout of the state on the disk; 0 where there is none yet.

    Raises:
        InstallError: INSTALL_JOURNAL where the mark is unreadable.
    """
    try:
        return int(json.loads((prefix.state / "version.json").read_text("utf-8"))["state_version"])
    except FileNotFoundError:
        return 0
    except (ValueError, KeyError, TypeError):
        raise InstallError("INSTALL_JOURNAL", "state/version.json is unreadable", path=str(prefix.state)) from None


def raise_state_version(prefix: Prefix, version: int) -> None:
    """Mark the state as being of this layout, if it was of an older one."""
    if state_version(prefix) < version:
        prefix.write(prefix.state / "version.json", json.dumps({"state_version": version}) + "\n")


def check_state(prefix: Prefix, manifest: Manifest) -> None:
    """A release must understand the state that is there.

    Raises:
        InstallError: INSTALL_STATE_NEWER.
    """
    found = state_version(prefix)
    if found > manifest.state_version:
        raise InstallError(
            "INSTALL_STATE_NEWER",
            f"state and configuration were written by a newer release (layout {found})",
            understood=manifest.state_version,
            release=manifest.release_id,
        )


def collect_garbage(prefix: Prefix, *, keep: int = KEEP) -> list[str]:
    """Remove old releases and unfinished ones, never the current nor the last good one before it.

    Args:
        keep: how many complete releases stay at least.

    Returns:
        Names of what was removed.
    """
    active, previous = prefix.active(), prefix.previous()
    transaction = prefix.transaction()
    complete = [release.id for release in installed_releases(prefix)]
    protected = {active, previous, transaction.release if transaction else None, *complete[-keep:]}
    removed = []
    for folder in sorted(prefix.releases.iterdir()):
        if folder.name not in protected:
            prefix.discard(folder.name)
            removed.append(folder.name)
    return removed


def require_prefix(path: Path) -> Prefix:
    """The prefix of an installation that exists.

    Raises:
        InstallError: INSTALL_PREFIX.
    """
    prefix = Prefix(path.absolute())
    if not prefix.releases.is_dir():
        raise InstallError("INSTALL_PREFIX", f"no appliance is installed below {path}", prefix=str(path))
    return prefix
