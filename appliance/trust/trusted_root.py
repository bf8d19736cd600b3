"""Sigstore's `trusted_root.json`: written by the authority, and read into the keys and windows a verifier needs.

sigstore-python looks at the start of a validity window with the machine's clock and never at its end. Here both ends
are read and enforced at the time of the signature (`verification`), and what is handed to sigstore-python has its
windows opened wide, so that no clock but the caller's decides.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from appliance import documents
from appliance.errors import DocumentError, TrustError
from appliance.trust.encoding import b64
from appliance.trust.keys import key_id, public_der
from appliance.trust.names import (
    OPERATOR,
    SIGNING_CONFIG_MEDIA_TYPE,
    TRUST_CONFIG_MEDIA_TYPE,
    TRUSTED_ROOT_MEDIA_TYPE,
)

if TYPE_CHECKING:
    from sigstore.models import TrustedRoot

_FOREVER = {"start": "1970-01-01T00:00:00Z"}


@dataclass(frozen=True)
class Window:
    """When a key may be used: both ends included; an open end is None."""

    start: datetime
    end: datetime | None

    def holds(self, time: datetime) -> bool:
        """Whether `time` lies within."""
        return self.start <= time and (self.end is None or time <= self.end)


@dataclass(frozen=True)
class LogKey:
    """A log's public key, base URL and window."""

    url: str
    key: ec.EllipticCurvePublicKey
    window: Window


@dataclass(frozen=True)
class Chain:
    """An authority's certificates, issuing (or time-stamping) certificate first, root last, and its window."""

    certificates: tuple[x509.Certificate, ...]
    window: Window
    uri: str = ""

    @cached_property
    def issuing_key_id(self) -> bytes:
        """SHA-256 of the issuing certificate's SubjectPublicKeyInfo, as it came."""
        return hashlib.sha256(
            self.certificates[0].public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        ).digest()


@dataclass(frozen=True)
class Anchors:
    """Everything that `trusted_root.json` names.

    Attributes:
        authorities, timestampers: chains of the signing and time-stamping authorities.
        logs, certificate_logs: key id -> log.
    """

    authorities: tuple[Chain, ...]
    timestampers: tuple[Chain, ...]
    logs: dict[bytes, LogKey]
    certificate_logs: dict[bytes, LogKey]


def write(anchors: Anchors) -> bytes:
    """`trusted_root.json`."""
    return documents.write_json(
        {
            "mediaType": TRUSTED_ROOT_MEDIA_TYPE,
            "tlogs": [_write_log(log) for log in anchors.logs.values()],
            "certificateAuthorities": [_write_chain(chain) for chain in anchors.authorities],
            "ctlogs": [_write_log(log) for log in anchors.certificate_logs.values()],
            "timestampAuthorities": [_write_chain(chain) for chain in anchors.timestampers],
        }
    )


def client_trust_config(trusted_root: bytes) -> bytes:
    """`trust_config.json` as `sigstore --trust-config` and `model_signing --trust_config` take it."""
    return documents.write_json(
        {
            "mediaType": TRUST_CONFIG_MEDIA_TYPE,
            "trustedRoot": json.loads(trusted_root),
            "signingConfig": {
                "mediaType": SIGNING_CONFIG_MEDIA_TYPE,
                "caUrls": [],
                "oidcUrls": [],
                "rekorTlogUrls": [],
                "rekorTlogConfig": {"selector": "ANY"},
                "tsaUrls": [],
                "tsaConfig": {"selector": "ANY"},
            },
        }
    )


def from_trust_config(data: bytes) -> bytes:
    """The trusted root within a `trust_config.json`; a bare trusted root is returned as it is.

    Raises:
        TrustError: TRUST_ROOT_MALFORMED.
    """
    try:
        document = documents.read_json(data, what="trust configuration")
    except DocumentError as error:
        raise TrustError("TRUST_ROOT_MALFORMED", error.cause) from None
    inner = document.get("trustedRoot") if isinstance(document, dict) else None
    return data if inner is None else documents.write_json(inner)


def read(data: bytes) -> Anchors:
    """Parse `trusted_root.json`.

    Raises:
        TrustError: TRUST_ROOT_MALFORMED.
    """
    try:
        document = documents.read_json(data, what="trusted_root.json")
        return Anchors(
            tuple(_read_chain(each) for each in document["certificateAuthorities"]),
            tuple(_read_chain(each) for each in document["timestampAuthorities"]),
            {key_id(log.key): log for log in map(_read_log, document["tlogs"])},
            {key_id(log.key): log for log in map(_read_log, document["ctlogs"])},
        )
    except DocumentError as error:
        raise TrustError("TRUST_ROOT_MALFORMED", error.cause) from None
    except (KeyError, TypeError, ValueError, AttributeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        reason = f"{type(error).__name__}: {error}"
        raise TrustError("TRUST_ROOT_MALFORMED", f"trusted_root.json cannot be used ({reason})") from None


def for_sigstore(data: bytes) -> TrustedRoot:
    """The same document for sigstore-python, with every window opened wide (see the module's first words).

    sigstore-python builds its key rings anew for every signature; here they are built once.
    """
    import appliance.trust.tuf_api  # noqa: F401, I001 (before sigstore, see there)
    from sigstore.errors import Error
    from sigstore.models import TrustedRoot
    from sigstore_models.trustroot import v1

    document = json.loads(data)
    for log in (*document["tlogs"], *document["ctlogs"]):
        log["publicKey"]["validFor"] = _FOREVER
    for chain in (*document["certificateAuthorities"], *document["timestampAuthorities"]):
        chain["validFor"] = _FOREVER

    class Prepared(TrustedRoot):
        rekor_keyring = cache(TrustedRoot.rekor_keyring)
        ct_keyring = cache(TrustedRoot.ct_keyring)
        get_timestamp_authorities = cache(TrustedRoot.get_timestamp_authorities)

    try:
        return Prepared(v1.TrustedRoot.from_json(json.dumps(document)))
    except (Error, ValueError) as error:
        raise TrustError("TRUST_ROOT_MALFORMED", f"sigstore does not accept trusted_root.json: {error}") from None


def _write_log(log: LogKey) -> dict[str, Any]:
    return {
        "baseUrl": log.url,
        "hashAlgorithm": "SHA2_256",
        "publicKey": {
            "rawBytes": b64(public_der(log.key)),
            "keyDetails": "PKIX_ECDSA_P256_SHA_256",
            "validFor": _write_window(log.window),
        },
        "logId": {"keyId": b64(key_id(log.key))},
    }


def _write_chain(chain: Chain) -> dict[str, Any]:
    subject = chain.certificates[0].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)[0].value
    return {
        "subject": {"organization": OPERATOR, "commonName": str(subject)},
        "uri": chain.uri,
        "certChain": {
            "certificates": [{"rawBytes": b64(each.public_bytes(Encoding.DER))} for each in chain.certificates]
        },
        "validFor": _write_window(chain.window),
    }


def _write_window(window: Window) -> dict[str, str]:
    written = {"start": rfc3339(window.start)}
    return written if window.end is None else {**written, "end": rfc3339(window.end)}


def _read_log(document: dict[str, Any]) -> LogKey:
    from cryptography.hazmat.primitives.serialization import load_der_public_key

    public = document["publicKey"]
    key = load_der_public_key(base64.b64decode(public["rawBytes"], validate=True))
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ValueError("a log's key is not ECDSA on P-256")  # noqa: TRY004 (a malformed document)
    if base64.b64decode(document["logId"]["keyId"], validate=True) != key_id(key):
        raise ValueError("a log's id is not the hash of its key")
    return LogKey(str(document["baseUrl"]), key, _read_window(public["validFor"]))


def _read_chain(document: dict[str, Any]) -> Chain:
    listed = document["certChain"]["certificates"]
    certificates = tuple(
        x509.load_der_x509_certificate(base64.b64decode(each["rawBytes"], validate=True)) for each in listed
    )
    if len(certificates) < 2:
        raise ValueError("an authority's chain needs the issuing certificate and a root")
    if not certificates[0].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME):
        raise ValueError("an authority's certificate has no common name")  # `write` needs it
    return Chain(certificates, _read_window(document["validFor"]), str(document.get("uri", "")))


def _read_window(document: dict[str, str]) -> Window:
    end = document.get("end")
    return Window(parse_rfc3339(document["start"]), None if end is None else parse_rfc3339(end))


def rfc3339(time: datetime) -> str:
    """A time as `2026-11-23T12:00:00Z`."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_rfc3339(text: str) -> datetime:
    """The reverse of `rfc3339`; UTC only.

    Raises:
        ValueError: for any other form.
    """
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
