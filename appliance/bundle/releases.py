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
_MARK = "version.json"  # below state/: its layout
_BEFORE = "state-before.json"  # in the journal


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
        _bring_state(prefix, releases[target].manifest.state_version, target)
        prefix.point_to(target, reason="rollback", now=now)
        return next(release for release in installed_releases(prefix) if release.id == target)


def state_version(prefix: Prefix) -> int:
    """Layout of the state on the disk; 0 where there is none yet.

    Raises:
        InstallError: INSTALL_JOURNAL where the mark is unreadable.
    """
    brought_by, before = _brought(prefix)
    if brought_by and brought_by != prefix.active():
        return before  # the switch to it never came about, or was taken back before anything used the state
    return int(_document(prefix.state / _MARK, {"state_version": int}).get("state_version", 0))


def raise_state_version(prefix: Prefix, version: int) -> None:
    """Mark the state as being of this layout, if it was of an older one, for the release that is about to run."""
    transaction = prefix.transaction()
    _bring_state(prefix, version, transaction.release if transaction else "")


def _bring_state(prefix: Prefix, version: int, release_id: str) -> None:
    """Mark the state before the switch to a release; until that has come about, the layout before it counts."""
    found = state_version(prefix)
    if found < version:
        note = {"release": release_id, "state_version": found}
        prefix.write(prefix.journal / _BEFORE, json.dumps(note, sort_keys=True) + "\n")
    if _document(prefix.state / _MARK, {"state_version": int}).get("state_version", 0) != max(found, version):
        prefix.write(prefix.state / _MARK, json.dumps({"state_version": max(found, version)}) + "\n")
    if found >= version:
        (prefix.journal / _BEFORE).unlink(missing_ok=True)


def _brought(prefix: Prefix) -> tuple[str, int]:
    """Which release raised the mark, and the layout before it; no backup carries that."""
    note = _document(prefix.journal / _BEFORE, {"release": str, "state_version": int})
    return note.get("release", ""), note.get("state_version", 0)


def _document(path: Path, kinds: dict[str, type]) -> dict[str, Any]:
    """A small document of ours; empty where there is none."""
    try:
        document = json.loads(path.read_text("utf-8"))
        if any(type(document[key]) is not kind for key, kind in kinds.items()):
            raise TypeError
        return dict(document)
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError):
        raise InstallError("INSTALL_JOURNAL", f"{path.name} is unreadable", path=str(path)) from None


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
