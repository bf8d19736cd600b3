"""The host's side of the trust repository: python-tuf's client over local files, with our clock and our refusals.

`update` runs the client workflow of the TUF specification (section 5) from a folder (the media) into a folder (a copy
of the host's state). `load` reads such a folder back without writing to it, and checks every signature, version and
hash again from the anchor's root on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from appliance.errors import FileError, TrustError
from appliance.files import read_regular, safe_relative
from appliance.trust.repository import ISSUED_FIELD, POLICY, REVOCATIONS, TRUSTED_ROOT
from appliance.trust.trusted_root import parse_rfc3339
from appliance.trust.tuf_api import (
    FetcherInterface,
    Metadata,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
    Updater,
    UpdaterConfig,
    refusal,
)

METADATA: Final = "metadata"
TARGETS: Final = "targets"
_REQUIRED: Final = (TRUSTED_ROOT, POLICY)
_OPTIONAL: Final = (REVOCATIONS,)
_MAX_METADATA_BYTES: Final = 512 * 1024
_MAX_TARGET_BYTES: Final = 4 * 1024 * 1024
_MAX_ROOTS: Final = 256


@dataclass(frozen=True)
class TrustedState:
    """What a checked state folder says.

    Attributes:
        root, timestamp, snapshot, targets: the metadata.
        contents: target name -> bytes.
        issued: when the timestamp was signed.
    """

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    contents: dict[str, bytes]
    issued: datetime

    @property
    def versions(self) -> dict[str, int]:
        """Version of each role's metadata."""
        parts = {"root": self.root, "timestamp": self.timestamp, "snapshot": self.snapshot, "targets": self.targets}
        return {role: signed.version for role, signed in parts.items()}

    @property
    def expiries(self) -> dict[str, datetime]:
        """Expiry of each role's metadata."""
        parts = {"root": self.root, "timestamp": self.timestamp, "snapshot": self.snapshot, "targets": self.targets}
        return {role: signed.expires for role, signed in parts.items()}


class _Folder(FetcherInterface):
    """Hands out a folder's regular files as `file:` URLs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = safe_relative(unquote(urlsplit(url).path).lstrip("/"))
        try:
            yield read_regular(self._folder / name, max_bytes=_MAX_TARGET_BYTES)
        except FileError as error:
            if error.code == "FILE_MISSING":
                raise refusal.DownloadHTTPError(f"{name} is not there", 404) from None
            raise refusal.DownloadError(error.cause) from None


def update(state: Path, source: Path, *, root: bytes, now: datetime) -> None:
    """Bring a state folder up to a repository's newest metadata and targets.

    Args:
        state: folder to write; on refusal it is left half updated and must be thrown away.
        source: the repository's folder, `metadata/` and `targets/`.
        root: the anchor's root metadata, where the chain of roots starts.
        now: the checked present.

    Raises:
        TrustError: TRUST_REPOSITORY_INCOMPLETE, TRUST_OLDER, TRUST_METADATA_EXPIRED, TRUST_THRESHOLD,
            TRUST_METADATA_HASH, TRUST_METADATA_MALFORMED, TRUST_TARGET_MISSING.
    """
    logging.getLogger("tuf").setLevel(logging.ERROR)
    for name in (METADATA, TARGETS):
        (state / name).mkdir(parents=True, exist_ok=True)
    config = UpdaterConfig(
        max_root_rotations=_MAX_ROOTS,
        root_max_length=_MAX_METADATA_BYTES,
        timestamp_max_length=_MAX_METADATA_BYTES,
        snapshot_max_length=_MAX_METADATA_BYTES,
        targets_max_length=_MAX_METADATA_BYTES,
    )
    with refusals():
        updater = Updater(
            str(state / METADATA),
            f"file:///{METADATA}/",
            str(state / TARGETS),
            f"file:///{TARGETS}/",
            fetcher=_Folder(source),
            config=config,
            bootstrap=root,
        )
        # python-tuf takes the machine's clock here; the caller's checked time decides instead
        updater._trusted_set.reference_time = now  # noqa: SLF001
        updater.refresh()
        # read from the top alone: the updater would follow delegations, and ours delegates to nobody
        signed = Metadata[Targets].from_bytes((state / METADATA / "targets.json").read_bytes()).signed.targets
        for name in (*_REQUIRED, *_OPTIONAL):
            entry = signed.get(name)
            if entry is None and name in _REQUIRED:
                raise TrustError("TRUST_TARGET_MISSING", f"the trust repository names no {name}", target=name)
            if entry is not None:
                updater.download_target(entry)


def load(state: Path, *, root: bytes, now: datetime | None) -> TrustedState:
    """Read a state folder and check it from the anchor's root on; nothing is written.

    Args:
        now: refuse what has expired by then; None leaves expiry out (a report on the state).

    Raises:
        TrustError: TRUST_STATE_DAMAGED, TRUST_METADATA_EXPIRED.
    """
    folder = state / METADATA
    with _damaged():
        trusted = Metadata[Root].from_bytes(root)
        trusted.verify_delegate("root", trusted)
        for version in range(trusted.signed.version + 1, trusted.signed.version + _MAX_ROOTS):
            try:
                data = read_regular(folder / "root_history" / f"{version}.root.json", max_bytes=_MAX_METADATA_BYTES)
            except FileError:
                break
            following = Metadata[Root].from_bytes(data)
            trusted.verify_delegate("root", following)
            following.verify_delegate("root", following)
            if following.signed.version != version:
                raise TrustError("TRUST_STATE_DAMAGED", f"root {version} says it is {following.signed.version}")
            trusted = following
        timestamp = _role(folder, Timestamp, "timestamp", trusted)
        snapshot = _role(folder, Snapshot, "snapshot", trusted)
        targets = _role(folder, Targets, "targets", trusted)
        versions = (timestamp.snapshot_meta.version, snapshot.meta["targets.json"].version)
        if versions != (snapshot.version, targets.version):
            raise TrustError("TRUST_STATE_DAMAGED", "the kept metadata do not belong together", versions=versions)
        contents = {name: _target(state / TARGETS, name, targets.targets[name]) for name in _REQUIRED}
        contents |= {
            name: _target(state / TARGETS, name, targets.targets[name]) for name in _OPTIONAL if name in targets.targets
        }
        issued = parse_rfc3339(str(timestamp.unrecognized_fields[ISSUED_FIELD]))
    found = TrustedState(trusted.signed, timestamp, snapshot, targets, contents, issued)
    for role, expires in found.expiries.items():
        if now is not None and now >= expires:
            raise TrustError(
                "TRUST_METADATA_EXPIRED", f"this host's trust metadata ({role}) expired", role=role, expired=expires
            )
    return found


def _role(folder: Path, kind: type[Any], role: str, root: Metadata[Root]) -> Any:
    metadata = Metadata[Any].from_bytes(read_regular(folder / f"{role}.json", max_bytes=_MAX_METADATA_BYTES))
    root.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    if not isinstance(metadata.signed, kind):
        raise TrustError("TRUST_STATE_DAMAGED", f"{role}.json holds another role's metadata")
    return metadata.signed


def _target(folder: Path, name: str, entry: TargetFile) -> bytes:
    data = read_regular(folder / quote(name, ""), max_bytes=_MAX_TARGET_BYTES)
    entry.verify_length_and_hashes(data)
    return data


@contextlib.contextmanager
def _damaged() -> Iterator[None]:
    try:
        yield
    except (refusal.RepositoryError, FileError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise TrustError("TRUST_STATE_DAMAGED", f"the kept trust state does not verify: {str(error)[:300]}") from None


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Translate python-tuf's refusals into ours."""
    try:
        yield
    except refusal.DownloadLengthMismatchError as error:
        raise TrustError("TRUST_METADATA_HASH", f"a file of the repository is longer than signed: {error}") from None
    except refusal.LengthOrHashMismatchError as error:
        raise TrustError("TRUST_METADATA_HASH", f"a file of the repository is not the signed one: {error}") from None
    except refusal.DownloadError as error:
        raise TrustError("TRUST_REPOSITORY_INCOMPLETE", f"the trust repository is incomplete: {error}") from None
    except refusal.BadVersionNumberError as error:
        raise TrustError("TRUST_OLDER", f"older than what this host has seen: {error}") from None
    except refusal.ExpiredMetadataError as error:
        raise TrustError("TRUST_METADATA_EXPIRED", f"the trust metadata have expired: {error}") from None
    except refusal.UnsignedMetadataError as error:
        raise TrustError("TRUST_THRESHOLD", f"too few valid signatures: {str(error)[:300]}") from None
    except (refusal.RepositoryError, FileError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"[:300]
        raise TrustError("TRUST_METADATA_MALFORMED", f"the trust metadata cannot be used ({reason})") from None
