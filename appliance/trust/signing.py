"""Signing: a role's fresh key and short-lived certificate, the log and the time-stamp, one Sigstore v0.3 bundle."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from appliance import documents
from appliance.artifact import SIGNATURE_NAME
from appliance.errors import TrustError
from appliance.trust import keys as k
from appliance.trust import oms
from appliance.trust.authority import Authority, Service
from appliance.trust.certificates import identity_name
from appliance.trust.encoding import b64, canonical_json
from appliance.trust.keys import Passphrase, PrivateKey, no_passphrase
from appliance.trust.log import Inclusion
from appliance.trust.names import BUNDLE_MEDIA_TYPE, IN_TOTO_PAYLOAD_TYPE, role_identity

_IDENTITY: Final = re.compile(r"(?=[!-~]{3,256}\Z)([^@]+@[^@]+|[a-z][a-z0-9+.-]*://.+)")
SIGNING_SERVICES: Final[tuple[Service, ...]] = ("signing", "ct", "log", "tsa")  # whose keys every signature takes


@dataclass(frozen=True)
class Signer:
    """A role that signs. Every signature gets a fresh key and a certificate of minutes; nothing is kept.

    Attributes:
        authority: who certifies, logs and time-stamps.
        identity: the SAN the certificates carry.
        at: a fixed time to sign at; None takes the clock at each signature.
    """

    authority: Authority
    identity: str
    at: datetime | None = None

    def check_keys(self) -> None:
        """Open every key that a signature takes, so that a missing one is known before long work and not after it.

        Raises:
            TrustError: TRUST_AUTHORITY_EXPIRED, TRUST_KEY_MISSING, TRUST_KEY_LOCKED, TRUST_PASSPHRASE.
        """
        for service in SIGNING_SERVICES:
            self.authority.keys.load(self.authority.current(service, self._time()).name)

    def sign_statement(self, payload: bytes) -> bytes:
        """Sign a statement's bytes.

        Returns:
            A Sigstore v0.3 bundle with a messageSignature, log entry (hashedrekord 0.0.1) and time-stamp.
        """
        digest = hashlib.sha256(payload)
        key, certificate, at = self._certified()
        signature = k.sign(key, payload)
        body = {
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": digest.hexdigest()}},
                "signature": {
                    "content": b64(signature),
                    "publicKey": {"content": b64(certificate.public_bytes(Encoding.PEM))},
                },
            },
        }
        content = {
            "messageSignature": {
                "messageDigest": {"algorithm": "SHA2_256", "digest": b64(digest.digest())},
                "signature": b64(signature),
            }
        }
        return self._bundle(content, body, signature, certificate, at)

    def sign_artifact(self, files: Mapping[str, bytes]) -> bytes:
        """Sign an artifact's files (without their signature).

        Returns:
            A Sigstore v0.3 bundle with a DSSE envelope around the OMS statement, log entry (dsse 0.0.1), time-stamp.
        """
        payload = oms.payload({name: data for name, data in files.items() if name != SIGNATURE_NAME})
        key, certificate, at = self._certified()
        signature = k.sign(key, _pae(payload))
        signatures = [{"signature": b64(signature), "verifier": b64(certificate.public_bytes(Encoding.PEM))}]
        envelope = {
            "payload": b64(payload),
            "payloadType": IN_TOTO_PAYLOAD_TYPE,
            "signatures": [{"sig": b64(signature)}],
        }
        body = {
            "apiVersion": "0.0.1",
            "kind": "dsse",
            "spec": {
                "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(canonical_json(envelope)).hexdigest()},
                "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(payload).hexdigest()},
                "signatures": signatures,
            },
        }
        return self._bundle({"dsseEnvelope": envelope}, body, signature, certificate, at)

    def _certified(self) -> tuple[PrivateKey, x509.Certificate, datetime]:
        at, key = self._time(), k.generate()
        return key, self.authority.issue_signing_certificate(key.public_key(), self.identity, at=at), at

    def _time(self) -> datetime:
        return (self.at or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)

    def _bundle(
        self,
        content: dict[str, Any],
        body: dict[str, Any],
        signature: bytes,
        certificate: x509.Certificate,
        at: datetime,
    ) -> bytes:
        log = self.authority.log("log", at=at)
        log_key = self.authority.keys.load(self.authority.current("log", at).name)
        canonical = canonical_json(body)
        entry = log.append(canonical)
        material = {
            "certificate": {"rawBytes": b64(certificate.public_bytes(Encoding.DER))},
            "tlogEntries": [_log_entry(log_key, body["kind"], canonical, entry, at)],
            "timestampVerificationData": {
                "rfc3161Timestamps": [{"signedTimestamp": b64(self.authority.timestamp(signature, at=at))}]
            },
        }
        return documents.write_json({"mediaType": BUNDLE_MEDIA_TYPE, "verificationMaterial": material, **content})


def open_signer(
    authority: Path,
    role: str,
    *,
    identity: str | None = None,
    at: datetime | None = None,
    passphrase: Passphrase = no_passphrase,
    elsewhere: Mapping[str, Path | PrivateKey] | None = None,
) -> Signer:
    """Open an authority to sign in a role.

    Args:
        authority: the authority's folder.
        role: a role of the policy; it names the identity unless `identity` does.
        identity: the certificate's SAN, an e-mail address or URI.
        at: sign as of this time (tests, ceremonies); None takes the clock.
        passphrase: asked for the passphrases of encrypted keys.
        elsewhere: keys that are not in the authority's folder: name -> file, or a token's key.

    Raises:
        TrustError: TRUST_AUTHORITY_MISSING, TRUST_AUTHORITY_DAMAGED, TRUST_ROLE_UNKNOWN, TRUST_IDENTITY.
    """
    from appliance.trust.repository import Repository

    opened = Authority.open(authority, passphrase=passphrase, elsewhere=elsewhere)
    roles = Repository(opened).policy().roles
    if role not in roles:
        raise TrustError("TRUST_ROLE_UNKNOWN", f"the policy has no role {role!r}", roles=sorted(roles))
    if identity is None:
        known = [each.identity for each in roles[role].identities if each.issuer == opened.issuer]
        identity = known[0] if known else role_identity(role, opened.state.domain)
    _check_identity(identity)
    return Signer(opened, identity, at)


def _check_identity(identity: str) -> None:
    """Refuse what no certificate can carry as its one name, before anything is signed under it."""
    try:
        identity_name(identity)
        fits = _IDENTITY.fullmatch(identity)
    except ValueError:
        fits = None
    if fits is None:
        raise TrustError(
            "TRUST_IDENTITY", f"{identity[:80]!r} is no e-mail address or URI that a certificate can carry"
        )


def _log_entry(key: PrivateKey, kind: str, body: bytes, entry: Inclusion, at: datetime) -> dict[str, Any]:
    integrated = int(at.timestamp())
    log_id = k.key_id(key.public_key())
    promise = {
        "body": b64(body),
        "integratedTime": integrated,
        "logID": log_id.hex(),
        "logIndex": entry.index,
    }
    return {
        "logIndex": str(entry.index),
        "logId": {"keyId": b64(log_id)},
        "kindVersion": {"kind": kind, "version": "0.0.1"},
        "integratedTime": str(integrated),
        "inclusionPromise": {"signedEntryTimestamp": b64(k.sign(key, canonical_json(promise)))},
        "inclusionProof": {
            "logIndex": str(entry.index),
            "rootHash": b64(entry.root),
            "treeSize": str(entry.size),
            "hashes": [b64(each) for each in entry.proof],
            "checkpoint": {"envelope": entry.checkpoint},
        },
        "canonicalizedBody": b64(body),
    }


def _pae(payload: bytes) -> bytes:
    """DSSE pre-authentication encoding (https://github.com/secure-systems-lab/dsse/blob/master/protocol.md)."""
    kind = IN_TOTO_PAYLOAD_TYPE.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
