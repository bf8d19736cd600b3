"""The registry over a home: immutable versions, and channels that point to them.

What lies where: `routers/<name>/<version>/<file>` (encoders likewise), `channels/<name>.json`. A version is complete
once its signature lies there, which is written last; a kill before leaves an incomplete version, which nothing reads
and publishing again completes.

Immutability rests on three legs, because homes differ in how well they keep `If-None-Match` (see `docs/registry.md`):
what stands is compared before and after writing; the artifact's signature covers every byte; and a channel names
every file by digest, so a replaced file is refused by every follower even if its new content is signed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import datetime, timedelta

from appliance.artifact import (
    MAX_BYTES,
    MAX_FILES,
    SIGNATURE_NAME,
    ArtifactFiles,
    Kind,
    encoder_metadata,
    from_files,
    router_metadata,
)
from appliance.errors import RegistryError, TrustError
from appliance.registry.admitted import verify_admitted
from appliance.registry.channel import DEFAULT_VALIDITY, ChannelState, StatementSigner, target_of
from appliance.registry.channels import Channels
from appliance.registry.contract import (
    PREFIXES,
    SIGNATURE_MAX_BYTES,
    Entry,
    checked_name,
    file_key,
    version_prefix,
)
from appliance.trust.verification import disowned, verify_artifact


@dataclass(frozen=True)
class VersionSummary:
    """One version of a listing.

    Attributes:
        complete: whether its signature lies there.
        modified: the youngest file's time.
    """

    kind: Kind
    name: str
    version: str
    files: int
    size_bytes: int
    complete: bool
    modified: datetime


class Registry(Channels):
    """A registry: versions, and the channels that point to them.

    Args: as `Channels`.
    """

    def digest_of(self, name: str, version: str, *, kind: Kind = "router") -> str:
        """The digest of a version, to revoke it: what lies there must be what was signed, by whomever.

        Raises:
            TrustError, ArtifactError, RegistryError: other bytes lie there than were signed, or under another name.
        """
        artifact, material = self.fetch(name, version, kind=kind), self._material()
        try:
            verify_artifact(artifact, material=material, at=self._clock())
        except TrustError as error:
            if not disowned(error, kind, material.policy):  # who is given up is often why it is revoked
                raise
        _check_identity(artifact, name=name, version=version)
        return artifact.digest

    def publish(self, artifact: ArtifactFiles, *, name: str, version: str) -> None:
        """Put a verified artifact under its name and version, for ever.

        Publishing the same bytes again changes nothing, and completes what a kill left incomplete.

        Raises:
            TrustError, ArtifactError: the signature or the metadata is refused.
            RegistryError: REGISTRY_IMMUTABLE where other bytes stand there; REGISTRY_NAME; what the home refuses.
        """
        verify_admitted(artifact, material=self._material(), at=self._clock())
        _check_identity(artifact, name=name, version=version)
        kind = artifact.kind
        files = {**artifact.files, SIGNATURE_NAME: artifact.require_signature()}
        standing = {entry.key for entry in self.store.list(version_prefix(kind, name, version))}
        expected = {file_key(kind, name, version, file): data for file, data in files.items()}
        if foreign := sorted(standing - set(expected)):
            raise _immutable(name, version, foreign[0])
        for key, data in expected.items():  # the signature comes last, as the mapping has it
            if key in standing:
                self._compare(key, data, name=name, version=version)
        for key, data in expected.items():
            if key not in standing:
                self._write_new(key, data, name=name, version=version)
        for key, data in expected.items():
            self._compare(key, data, name=name, version=version)

    def _write_new(self, key: str, data: bytes, *, name: str, version: str) -> None:
        try:
            self.store.put(key, data, only_if_absent=True)
        except RegistryError as error:
            if error.code != "REGISTRY_EXISTS":
                raise
            self._compare(key, data, name=name, version=version)  # another publisher, or our own retried request

    def _compare(self, key: str, data: bytes, *, name: str, version: str) -> None:
        try:
            standing = self.store.get(key, max_bytes=len(data))
        except RegistryError as error:
            if error.code != "REGISTRY_TOO_LARGE":
                raise
            raise _immutable(name, version, key) from None
        if standing is None or standing.data != data:
            raise _immutable(name, version, key)

    def fetch(self, name: str, version: str, *, kind: Kind = "router") -> ArtifactFiles:
        """Read a version; nothing in it is verified yet.

        Raises:
            RegistryError: REGISTRY_NOT_FOUND, REGISTRY_INCOMPLETE, REGISTRY_TOO_LARGE; what the home refuses.
        """
        prefix = version_prefix(kind, name, version)
        entries = self.store.list(prefix)
        if not entries:
            raise RegistryError("REGISTRY_NOT_FOUND", f"no {kind} {name} {version}", name=name, version=version)
        if prefix + SIGNATURE_NAME not in {entry.key for entry in entries}:
            raise RegistryError(
                "REGISTRY_INCOMPLETE", f"{name} {version} was never published to its end", name=name, version=version
            )
        total = sum(entry.size_bytes for entry in entries)
        if len(entries) > MAX_FILES + 1 or total > MAX_BYTES:
            raise RegistryError(
                "REGISTRY_TOO_LARGE", f"{name} {version} is larger than allowed", files=len(entries), bytes=total
            )
        return from_files({entry.key.removeprefix(prefix): self._read(entry) for entry in entries})

    def _read(self, entry: Entry) -> bytes:
        buffer = io.BytesIO()
        self.store.copy(entry.key, buffer, size_bytes=entry.size_bytes)
        return buffer.getvalue()

    def promote(
        self,
        name: str,
        version: str,
        signer: StatementSigner,
        *,
        channel: str | None = None,
        kind: Kind = "router",
        validity: timedelta = DEFAULT_VALIDITY,
    ) -> ChannelState:
        """Point a channel (by default the one of the same name) to a version that is complete and verifies.

        Raises:
            TrustError, ArtifactError: the version does not verify.
            RegistryError: REGISTRY_REVOKED, REGISTRY_CHANNEL_RACE, REGISTRY_INCOMPLETE; what the home refuses.
        """
        artifact = self.fetch(name, version, kind=kind)
        verify_admitted(artifact, material=self._material(), at=self._clock())
        _check_identity(artifact, name=name, version=version)
        target = target_of(artifact, name=name, version=version)
        state = self._advance(channel or name, signer, target=lambda _old: target, validity=validity)
        signature = file_key(kind, name, version, SIGNATURE_NAME)
        if signature not in {entry.key for entry in self.store.list(signature)}:
            raise RegistryError(
                "REGISTRY_INCOMPLETE",
                f"{name} {version} was collected while it was promoted; followers go on with what they serve",
                channel=state.pointer.name,
                remedy="Publish it again with `appliance artifact publish`; the channel points to it already.",
            )
        return state

    def versions(self, kind: Kind = "router") -> list[VersionSummary]:
        """Every version of a kind, by name and version."""
        found: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.store.list(f"{PREFIXES[kind]}/"):
            parts = entry.key.split("/")
            if len(parts) >= 4:
                found.setdefault((parts[1], parts[2]), []).append(entry)
        return [
            VersionSummary(
                kind=kind,
                name=name,
                version=version,
                files=len(entries),
                size_bytes=sum(entry.size_bytes for entry in entries),
                complete=any(entry.key.endswith(f"/{version}/{SIGNATURE_NAME}") for entry in entries),
                modified=max(entry.modified for entry in entries),
            )
            for (name, version), entries in sorted(found.items())
        ]


def _check_identity(artifact: ArtifactFiles, *, name: str, version: str) -> None:
    """A verified artifact lies under the name it says it has."""
    checked_name(name)
    if artifact.kind == "router":
        metadata = router_metadata(artifact)
        if (metadata.name, metadata.version) != (name, version):
            raise RegistryError(
                "REGISTRY_MISPLACED",
                f"the router calls itself {metadata.name} {metadata.version}, not {name} {version}",
                inside=f"{metadata.name} {metadata.version}",
                asked=f"{name} {version}",
            )
    else:
        encoder_metadata(artifact)
    if len(artifact.require_signature()) > SIGNATURE_MAX_BYTES:
        raise RegistryError("REGISTRY_TOO_LARGE", "the signature is larger than any honest one")


def _immutable(name: str, version: str, key: str) -> RegistryError:
    return RegistryError(
        "REGISTRY_IMMUTABLE",
        f"{name} {version} stands already with other content; a published version never changes",
        key=key,
        remedy="Give the new content a new version: `appliance artifact pack DIR --version NEW`, sign and publish it.",
    )
