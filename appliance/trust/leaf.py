"""The signing certificate: issued by a trusted authority, logged by a trusted certificate log, of one exact profile."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.certificate_transparency import SignedCertificateTimestamp
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, ObjectIdentifier

from appliance.errors import TrustError
from appliance.trust.keys import is_canonical, verifies
from appliance.trust.names import MAX_SIGNER_LIFETIME, OIDC_ISSUER_V1, OIDC_ISSUER_V2
from appliance.trust.trusted_root import Anchors, Chain, LogKey

# extension -> whether it is critical: exactly these, nothing else
_PROFILE: dict[ObjectIdentifier, bool] = {
    ExtensionOID.SUBJECT_KEY_IDENTIFIER: False,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER: False,
    ExtensionOID.KEY_USAGE: True,
    ExtensionOID.EXTENDED_KEY_USAGE: False,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME: True,
    OIDC_ISSUER_V1: False,
    OIDC_ISSUER_V2: False,
    ExtensionOID.PRECERT_SIGNED_CERTIFICATE_TIMESTAMPS: False,
}

UNREADABLE = (  # what `cryptography` says of certificates that it cannot read
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True)
class Leaf:
    """A signing certificate whose issuer, profile and SCT have been checked (its time has not).

    Attributes:
        identity, issuer: SAN and the issuer that vouched for it.
        authority: the chain that issued it.
        certificate_log, sct_time: which log recorded it, and when.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePublicKey
    identity: str
    issuer: str
    authority: Chain
    certificate_log: LogKey
    sct_time: datetime

    def check_valid_at(self, time: datetime) -> None:
        """Refuse a time outside of the certificate's minutes.

        Raises:
            TrustError: TRUST_CERTIFICATE_TIME.
        """
        start, end = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
        if not start <= time <= end:
            raise TrustError(
                "TRUST_CERTIFICATE_TIME",
                f"the certificate was not valid when the signature was made ({time:%Y-%m-%dT%H:%M:%SZ})",
                valid_from=start,
                valid_until=end,
            )


def read_leaf(der: bytes, anchors: Anchors) -> Leaf:
    """Read and check a signing certificate.

    Raises:
        TrustError: TRUST_CERTIFICATE_* for all but its time, TRUST_SCT, TRUST_SCT_LOG, TRUST_SCT_SIGNATURE.
    """
    try:
        certificate = x509.load_der_x509_certificate(der)
        extensions = {each.oid: each for each in certificate.extensions}
        key = certificate.public_key()
        exact = der.endswith(b"\0" + certificate.signature)  # a count of unused bits would be part of no signature
        certificate.issuer, certificate.subject, certificate.signature_hash_algorithm  # noqa: B018 (read lazily)
    except UNREADABLE as error:
        raise TrustError("TRUST_CERTIFICATE_MALFORMED", f"the certificate cannot be read: {str(error)[:200]}") from None
    if not exact:
        raise TrustError("TRUST_CERTIFICATE_MALFORMED", "the certificate is not plain DER")
    authority = _authority(certificate, anchors)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError("TRUST_CERTIFICATE_KEY", "the signing certificate's key is not ECDSA on P-256")
    if certificate.not_valid_after_utc - certificate.not_valid_before_utc > MAX_SIGNER_LIFETIME:
        raise TrustError(
            "TRUST_CERTIFICATE_LIFETIME",
            "the signing certificate holds for longer than a day",
            valid_from=certificate.not_valid_before_utc,
            valid_until=certificate.not_valid_after_utc,
        )
    if {oid: each.critical for oid, each in extensions.items()} != _PROFILE or certificate.subject.rdns:
        raise _profile(
            "it has other extensions, or a subject", extensions=sorted(oid.dotted_string for oid in extensions)
        )
    values = {oid: each.value for oid, each in extensions.items()}
    identity, issuer = _names(values)
    if issuer != authority.uri:
        raise TrustError(
            "TRUST_CERTIFICATE_ISSUER",
            f"the authority may not vouch in the name of {issuer[:200]}",
            authority=authority.uri,
            issuer=issuer[:200],
        )
    log, time = _check_sct(certificate, values, authority, anchors)
    return Leaf(certificate, key, identity, issuer, authority, log, time)


def _authority(certificate: x509.Certificate, anchors: Anchors) -> Chain:
    for chain in anchors.authorities:
        try:
            certificate.verify_directly_issued_by(chain.certificates[0])
        except (*UNREADABLE, InvalidSignature):
            continue
        if is_canonical(certificate.signature):
            return chain
    raise TrustError(
        "TRUST_CERTIFICATE_AUTHORITY",
        "the certificate was not issued by a trusted signing authority",
        issuer=certificate.issuer.rfc4514_string()[:200],
    )


def _names(values: Mapping[ObjectIdentifier, Any]) -> tuple[str, str]:
    """Identity and issuer, from the values of exactly the profile's extensions."""
    usage, extended = values[ExtensionOID.KEY_USAGE], values[ExtensionOID.EXTENDED_KEY_USAGE]
    try:
        san = list(values[ExtensionOID.SUBJECT_ALTERNATIVE_NAME])
        issuer = values[OIDC_ISSUER_V1].value.decode("utf-8")
        same = asn1.encode_der(issuer) == values[OIDC_ISSUER_V2].value
    except ValueError:
        raise _profile("an extension cannot be read") from None
    signing_only = usage.digital_signature and not (
        usage.key_cert_sign
        or usage.crl_sign
        or usage.key_agreement
        or usage.key_encipherment
        or usage.data_encipherment
        or usage.content_commitment
    )
    if not signing_only or list(extended) != [ExtendedKeyUsageOID.CODE_SIGNING]:
        raise TrustError("TRUST_CERTIFICATE_USAGE", "the signing certificate is not for code signing alone")
    if len(san) != 1 or not isinstance(san[0], x509.RFC822Name | x509.UniformResourceIdentifier):
        raise TrustError("TRUST_CERTIFICATE_IDENTITY", "the signing certificate does not carry exactly one identity")
    if not same or not issuer:
        raise TrustError("TRUST_CERTIFICATE_ISSUER", "the signing certificate's two issuer fields disagree")
    return san[0].value, issuer


def _check_sct(
    certificate: x509.Certificate, values: Mapping[ObjectIdentifier, Any], authority: Chain, anchors: Anchors
) -> tuple[LogKey, datetime]:
    """The SCT's signature over the certificate without it (RFC 6962 section 3.2)."""
    try:
        timestamps: list[SignedCertificateTimestamp] = list(values[ExtensionOID.PRECERT_SIGNED_CERTIFICATE_TIMESTAMPS])
        tbs = certificate.tbs_precertificate_bytes
    except ValueError:
        raise TrustError("TRUST_SCT", "the certificate's SCT cannot be read") from None
    if len(timestamps) != 1:
        raise TrustError("TRUST_SCT", f"the certificate carries {len(timestamps)} SCTs, not one")
    sct = timestamps[0]
    log = anchors.certificate_logs.get(sct.log_id)
    if log is None:
        raise TrustError(
            "TRUST_SCT_LOG", "the SCT is of a certificate log that is not trusted here", log=sct.log_id.hex()
        )
    try:
        time = sct.timestamp.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # 64 bits of milliseconds reach beyond the last year there is
        raise TrustError("TRUST_SCT", "the SCT's time is out of range", log=sct.log_id.hex()) from None
    signed = (
        struct.pack("!BBQH", 0, 0, round(time.timestamp() * 1000), 1)
        + authority.issuing_key_id
        + struct.pack("!I", len(tbs))[1:]
        + tbs
        + struct.pack("!H", len(sct.extension_bytes))
        + sct.extension_bytes
    )
    if not verifies(log.key, sct.signature, signed):
        raise TrustError(
            "TRUST_SCT_SIGNATURE", "the SCT's signature does not fit the certificate", log=sct.log_id.hex()
        )
    return log, time


def _profile(reason: str, **evidence: Any) -> TrustError:
    return TrustError("TRUST_CERTIFICATE_PROFILE", f"the signing certificate breaks its profile: {reason}", **evidence)
