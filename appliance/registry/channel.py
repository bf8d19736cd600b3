"""A channel: a signed pointer to the version that its followers serve.

The pointer is the statement `channel`, signed by whoever the zone's policy lets sign it, in one object together with
its signature, so that a reader meets the old pair or the new one and never a mixture. It names every file of the
version with digest and length, so a follower knows what it fetches before the first byte. Epochs rise; a host
remembers the highest it has seen and refuses anything older, and anything else of the same epoch.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from appliance import documents
from appliance.artifact import MAX_BYTES, MAX_FILES, SIGNATURE_NAME, ArtifactFiles, Kind, Sha256
from appliance.errors import ApplianceError, RegistryError
from appliance.files import sha256_hex
from appliance.registry.contract import POINTER_MAX_BYTES
from appliance.trust.verification import TrustMaterial, Verdict, verify_statement

TYPE = "https://appliance.internal/channel/v1"
DEFAULT_VALIDITY = timedelta(days=90)
MAX_EPOCH = 2**53  # the last whole number that every reader of JSON keeps exactly
MAX_REVOKED = 4096  # digests
_RFC3339 = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"
_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Document):
    """One file of a version: what must arrive."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0, le=MAX_BYTES)]


class Target(_Document):
    """The version a channel points to.

    Attributes:
        kind: `router` or `encoder`.
        name, version: where it lies.
        digest: `ArtifactFiles.digest`.
        files: every file, the signature included.
    """

    kind: Kind
    name: Annotated[str, Field(pattern=_NAME)]
    version: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._+-]{0,63}$")]
    digest: Sha256
    files: Annotated[dict[str, FileRecord], Field(min_length=1, max_length=MAX_FILES + 1)]

    @field_validator("files")
    @classmethod
    def _bounded(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        """Followers fetch and hold all of it before they see the artifact's own signature."""
        if sum(record.size_bytes for record in files.values()) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES} bytes together")
        return files


class Pointer(_Document):
    """The statement `channel`.

    Attributes:
        name: the channel's.
        epoch: rises with every change; never returns.
        target: the version to serve, or None: serve none, route by weights.
        revoked: digests of artifacts that must not be served again; a channel only ever adds to them.
        promoted: when, RFC 3339, UTC.
        expires: after this a follower says that it may have been kept from news; it goes on serving.
    """

    type_: Annotated[Literal["https://appliance.internal/channel/v1"], Field(alias="_type")]
    name: Annotated[str, Field(pattern=_NAME)]
    epoch: Annotated[int, Field(ge=1, le=MAX_EPOCH)]
    target: Target | None
    revoked: Annotated[tuple[Sha256, ...], Field(max_length=MAX_REVOKED)]
    promoted: Annotated[str, Field(pattern=_RFC3339)]
    expires: Annotated[str, Field(pattern=_RFC3339)]

    @property
    def expires_at(self) -> datetime:
        """`expires` as a time."""
        return datetime.fromisoformat(self.expires)


@dataclass(frozen=True)
class ChannelState:
    """A verified pointer.

    Attributes:
        pointer: what it says.
        verdict: who signed it, and when.
        digest: SHA-256 of the statement: two pointers with one epoch are told apart by it.
        etag: the registry's tag of the object it came in; empty where it came from the cache.
        envelope: the object's bytes, to be kept and verified again.
    """

    pointer: Pointer
    verdict: Verdict
    digest: str
    etag: str
    envelope: bytes


class StatementSigner(Protocol):
    """What signs a pointer (`trust.signing.Signer`)."""

    def sign_statement(self, payload: bytes) -> bytes:
        """Return the Sigstore bundle over the payload."""


def seal(pointer: Pointer, signer: StatementSigner) -> bytes:
    """Sign a pointer and put statement and signature into one object."""
    statement = documents.write_json(pointer.model_dump(mode="json", by_alias=True))
    return envelope(statement, signer.sign_statement(statement))


def envelope(statement: bytes, bundle: bytes) -> bytes:
    """Statement and signature as one object."""
    return documents.write_json(
        {"statement": base64.b64encode(statement).decode(), "bundle": base64.b64encode(bundle).decode()}
    )


def split(sealed: bytes) -> tuple[bytes, bytes]:
    """The statement and its Sigstore bundle, for us and for anyone with stock tools.

    Raises:
        RegistryError: REGISTRY_CHANNEL_MALFORMED.
        DocumentError: DOCUMENT_MALFORMED, DOCUMENT_DUPLICATE_KEY, DOCUMENT_TOO_LARGE.
    """
    value = documents.read_json(sealed, what="channel", max_bytes=POINTER_MAX_BYTES)
    try:
        if set(value) != {"statement", "bundle"}:
            raise ValueError("keys")
        return (
            base64.b64decode(value["statement"], validate=True),
            base64.b64decode(value["bundle"], validate=True),
        )
    except (TypeError, ValueError, binascii.Error):
        raise RegistryError("REGISTRY_CHANNEL_MALFORMED", "the channel holds no statement and signature") from None


def unseal(sealed: bytes, *, channel: str, etag: str, material: TrustMaterial, at: datetime) -> ChannelState:
    """Verify a channel's object.

    Args:
        sealed: its bytes.
        channel: the name it was found under; a pointer made for another channel is refused.
        etag: the registry's tag.
        material: the zone's trust.
        at: the checked time.

    Raises:
        TrustError: what `verify_statement` refuses.
        RegistryError: REGISTRY_CHANNEL_MALFORMED, REGISTRY_CHANNEL_SWAPPED.
        DocumentError: where the signed document is not one of ours.
    """
    statement, bundle = split(sealed)
    verdict = verify_statement(statement, bundle, kind="channel", material=material, at=at)
    value: Any = documents.read_json(statement, what="channel statement", max_bytes=POINTER_MAX_BYTES)
    pointer = documents.validate(Pointer, value, what="channel statement")
    if pointer.name != channel:
        raise RegistryError(
            "REGISTRY_CHANNEL_SWAPPED",
            f"under channel {channel} lies the pointer of channel {pointer.name}",
            channel=channel,
            found=pointer.name,
        )
    return ChannelState(pointer, verdict, sha256_hex(statement), etag, sealed)


@dataclass(frozen=True)
class Noted:
    """What a pointer says that was believed once; nothing of it may be served for that.

    Attributes:
        pointer: its words.
        digest: SHA-256 of the statement.
    """

    pointer: Pointer
    digest: str


def noted(sealed: bytes, *, channel: str) -> Noted | None:
    """A pointer's words without a look at its signature; None where it is no pointer of this channel.

    A host remembers by them how far it has come, whatever it thinks of the signer today; an officer counts on from
    them after a signer was given up, because hosts may have followed him while he was in good standing.
    """
    try:
        statement = split(sealed)[0]
        value: Any = documents.read_json(statement, what="channel statement", max_bytes=POINTER_MAX_BYTES)
        pointer = documents.validate(Pointer, value, what="channel statement")
    except ApplianceError:
        return None
    return Noted(pointer, sha256_hex(statement)) if pointer.name == channel else None


def check_successor(state: ChannelState, known: ChannelState | Noted | None) -> None:
    """Refuse a pointer that does not follow the highest one this host has seen.

    Raises:
        RegistryError: REGISTRY_CHANNEL_ROLLBACK for a lower epoch, REGISTRY_CHANNEL_FORK for another pointer of the
            same epoch, REGISTRY_CHANNEL_UNREVOKED where a revocation was dropped.
    """
    if known is None:
        return
    new, old = state.pointer, known.pointer
    if new.epoch < old.epoch:
        raise RegistryError(
            "REGISTRY_CHANNEL_ROLLBACK",
            f"channel {new.name} went back from epoch {old.epoch} to {new.epoch}",
            channel=new.name,
            seen_epoch=old.epoch,
            offered_epoch=new.epoch,
            signed_by=state.verdict.identity,
        )
    if new.epoch == old.epoch and state.digest != known.digest:
        raise RegistryError(
            "REGISTRY_CHANNEL_FORK",
            f"channel {new.name} has two different pointers of epoch {new.epoch}",
            channel=new.name,
            epoch=new.epoch,
            seen=known.digest,
            offered=state.digest,
            signed_by=state.verdict.identity,
        )
    if missing := sorted(set(old.revoked) - set(new.revoked)):
        raise RegistryError(
            "REGISTRY_CHANNEL_UNREVOKED",
            f"epoch {new.epoch} of channel {new.name} drops {len(missing)} revocations",
            channel=new.name,
            dropped=missing[:5],
        )


def check_fresh(state: ChannelState, at: datetime) -> None:
    """Refuse a pointer past its `expires` as news.

    Raises:
        RegistryError: REGISTRY_CHANNEL_EXPIRED.
    """
    if at >= state.pointer.expires_at:
        raise RegistryError(
            "REGISTRY_CHANNEL_EXPIRED",
            f"the pointer of channel {state.pointer.name} ran out on {state.pointer.expires}",
            channel=state.pointer.name,
            epoch=state.pointer.epoch,
            expires=state.pointer.expires,
        )


def target_of(artifact: ArtifactFiles, *, name: str, version: str) -> Target:
    """Describe a signed artifact as a channel does."""
    files = {**artifact.files, SIGNATURE_NAME: artifact.require_signature()}
    records = {file: FileRecord(sha256=sha256_hex(data), size_bytes=len(data)) for file, data in files.items()}
    return Target(kind=artifact.kind, name=name, version=version, digest=artifact.digest, files=records)


def successor(
    known: Pointer | None,
    *,
    channel: str,
    target: Target | None,
    at: datetime,
    validity: timedelta = DEFAULT_VALIDITY,
    revoke: Iterable[str] = (),
) -> Pointer:
    """The pointer that follows `known`.

    Args:
        known: the pointer that stands now, or None for the first.
        channel: its name.
        target: the version to serve, or None.
        at: the checked time.
        validity: until it expires.
        revoke: digests to add to the revoked ones.

    Raises:
        RegistryError: REGISTRY_REVOKED where the target is among them; REGISTRY_CHANNEL_EXHAUSTED.
    """
    revoked = tuple(sorted({*(known.revoked if known else ()), *revoke}))
    if target is not None and target.digest in revoked:
        raise RegistryError(
            "REGISTRY_REVOKED",
            f"{target.name} {target.version} is revoked on channel {channel}",
            name=target.name,
            version=target.version,
            digest=target.digest,
        )
    epoch = (known.epoch if known else 0) + 1
    if epoch > MAX_EPOCH or len(revoked) > MAX_REVOKED:
        raise RegistryError(
            "REGISTRY_CHANNEL_EXHAUSTED", f"channel {channel} cannot go on", epoch=epoch, revoked=len(revoked)
        )
    return Pointer.model_validate(
        {
            "_type": TYPE,
            "name": channel,
            "epoch": epoch,
            "target": target,
            "revoked": revoked,
            "promoted": _rfc3339(at),
            "expires": _rfc3339(at + validity),
        }
    )


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
