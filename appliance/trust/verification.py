"""The verdict on a signature. Pure: bytes, time and policy in; no clock, disk or network.

Order: the evidence (certificate, logs, time-stamp, signature; `evidence`), then the time, the deny-list, the role,
and last the content, which nobody parses before its signature has held.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import PurePosixPath
from typing import Any

from appliance import documents
from appliance.artifact import ArtifactFiles
from appliance.errors import DocumentError, TrustError
from appliance.files import sha256_hex
from appliance.trust import oms
from appliance.trust.evidence import Evidence, examine
from appliance.trust.names import IN_TOTO_PAYLOAD_TYPE, statement_type
from appliance.trust.policy import LogIndex, Policy

CLOCK_SKEW = timedelta(minutes=5)  # a signature may be so much younger than our clock believes
MAX_STATEMENT_BYTES = 64 * 1024 * 1024

_GIVEN_UP = frozenset({"TRUST_ROLE", "TRUST_DENIED", "TRUST_KEY_WINDOW"})  # the last checks: all else has held
_PLAIN_SUFFIXES = {"", "yaml", "txt", "md"}
_FORMATS = {"pkl": "pickle", "pickle": "pickle", "joblib": "pickle", "pt": "torch", "pth": "torch", "bin": "torch"}


@dataclass(frozen=True)
class TrustMaterial:
    """Authenticated before (by `TrustStore`); everything that a verification needs.

    Attributes:
        trusted_root: Sigstore `trusted_root.json`.
        policy: roles, deny-lists, lowest epochs, model formats.
    """

    trusted_root: bytes
    policy: Policy


@dataclass(frozen=True)
class Verdict:
    """What an accepted signature means.

    Attributes:
        kind: `release`, `channel`, `inventory`, `router`, `encoder`, ...
        role: the policy role that admitted it.
        identity, issuer: SAN of the signing certificate, and who vouched for it.
        signed_at: verified time, UTC.
        certificate_serial, log_index: for the deny-list.
        digest: SHA-256 of the statement, or `ArtifactFiles.digest`.
    """

    kind: str
    role: str
    identity: str
    issuer: str
    signed_at: datetime
    certificate_serial: int
    log_index: int
    digest: str


def verify_statement(payload: bytes, bundle: bytes, *, kind: str, material: TrustMaterial, at: datetime) -> Verdict:
    """Verify a signed statement, then its `_type` and epoch.

    Args:
        payload: the statement's bytes.
        bundle: its Sigstore bundle.
        kind: the kind the caller is about to treat it as.
        material: what is trusted.
        at: the present, from `TrustStore.checked_time`.

    Raises:
        TrustError: the broken link's code.
    """
    if len(payload) > MAX_STATEMENT_BYTES:
        raise TrustError("TRUST_STATEMENT_MALFORMED", "the statement is too large", bytes=len(payload))
    evidence = examine(bundle, trusted_root_document=material.trusted_root, statement=payload)
    verdict = _judge(evidence, kind, sha256_hex(payload), material.policy, at, role=None)
    _check_statement(payload, kind, material.policy)
    return verdict


def verify_artifact(
    artifact: ArtifactFiles, *, material: TrustMaterial, at: datetime, role: str | None = None
) -> Verdict:
    """Verify an artifact's signature over all of its files and nothing else.

    Args:
        artifact: the files, read once.
        material: what is trusted.
        at: the present.
        role: accept this role's signature alone.

    Raises:
        TrustError: the broken link's code.
        ArtifactError: ARTIFACT_UNSIGNED, ARTIFACT_MISSING, ARTIFACT_METADATA.
    """
    signature = artifact.require_signature()
    evidence = examine(signature, trusted_root_document=material.trusted_root, statement=None)
    payload_type, payload = evidence.envelope or ("", b"")
    if payload_type != IN_TOTO_PAYLOAD_TYPE:
        raise TrustError("TRUST_PAYLOAD_TYPE", "the envelope holds something else", payload_type=payload_type[:100])
    verdict = _judge(evidence, artifact.kind, artifact.digest, material.policy, at, role=role)
    oms.check(payload, artifact.digests)
    _check_formats(artifact, material.policy)
    return verdict


def disowned(error: TrustError, kind: str, policy: Policy) -> bool:
    """Whether a refused signature was made in due form, by a key or a person that the zone has given up since.

    Nothing of it may be used as if it held; but what follows it may count on from it (`registry.promote`).
    """
    identity, issuer = error.evidence.get("identity"), error.evidence.get("issuer")
    if error.code not in _GIVEN_UP or not isinstance(identity, str) or not isinstance(issuer, str):
        return False
    return policy.may_have_signed(identity, issuer, kind)


def _judge(evidence: Evidence, kind: str, digest: str, policy: Policy, at: datetime, *, role: str | None) -> Verdict:
    if evidence.signed_at > at + CLOCK_SKEW:
        raise TrustError(
            "TRUST_SIGNED_LATER",
            "the signature was made after what this host takes for now",
            signed_at=evidence.signed_at,
            now=at,
        )
    denied = policy.denied
    for present, what in (
        (f"{evidence.certificate_serial:x}" in denied.certificate_serials, "certificate"),
        (LogIndex(log=evidence.log, index=evidence.log_index) in denied.log_indices, "log entry"),
        (digest in denied.digests, "content"),
    ):
        if present:
            raise TrustError(
                "TRUST_DENIED",
                f"the zone's policy denies this {what}",
                identity=evidence.identity,
                issuer=evidence.issuer,
                digest=digest,
                certificate_serial=f"{evidence.certificate_serial:x}",
                log_index=evidence.log_index,
            )
    found = policy.role_of(evidence.identity, evidence.issuer, kind, role=role)
    if found is None:
        raise TrustError(
            "TRUST_ROLE",
            f"{evidence.identity} may not sign a {kind}" + (f" as {role}" if role else ""),
            identity=evidence.identity,
            issuer=evidence.issuer,
            kind=kind,
        )
    return Verdict(
        kind=kind,
        role=found,
        identity=evidence.identity,
        issuer=evidence.issuer,
        signed_at=evidence.signed_at,
        certificate_serial=evidence.certificate_serial,
        log_index=evidence.log_index,
        digest=digest,
    )


def _check_statement(payload: bytes, kind: str, policy: Policy) -> None:
    """The statement's type, form and epoch, after its signature."""
    try:
        document: Any = documents.read_canonical_json(payload, what=f"{kind} statement", max_bytes=MAX_STATEMENT_BYTES)
    except DocumentError as error:
        raise TrustError("TRUST_STATEMENT_MALFORMED", error.cause) from None
    if not isinstance(document, dict):
        raise TrustError("TRUST_STATEMENT_MALFORMED", f"the {kind} statement is not an object")
    if document.get("_type") != statement_type(kind):
        raise TrustError(
            "TRUST_TYPE", f"this is not a {kind}", found=str(document.get("_type"))[:200], expected=statement_type(kind)
        )
    name, epoch = document.get("name"), document.get("epoch")
    lowest = policy.lowest_epoch(kind, name if isinstance(name, str) else None)
    if lowest and not (isinstance(epoch, int) and not isinstance(epoch, bool) and epoch >= lowest):
        raise TrustError("TRUST_EPOCH", f"this {kind} is older than the policy allows", epoch=epoch, lowest=lowest)


def _check_formats(artifact: ArtifactFiles, policy: Policy) -> None:
    for name in artifact.files:
        suffix = PurePosixPath(name).suffix.removeprefix(".").lower()
        found = _FORMATS.get(suffix, suffix)
        if suffix not in _PLAIN_SUFFIXES and found not in policy.model_formats:
            raise TrustError(
                "TRUST_FORMAT", f"{name}: the policy allows no {found} files", allowed=list(policy.model_formats)
            )
