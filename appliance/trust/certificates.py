"""X.509 certificates of the authority: root, issuing authorities, time-stamping, signing leaves with their SCT.

A signing leaf follows Fulcio's profile (https://github.com/sigstore/fulcio/blob/main/docs/certificate-specification.md):
empty subject, critical SAN with the identity, codeSigning, the issuer in both OIDs, one embedded SCT.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from appliance.trust.keys import PrivateKey, is_canonical, key_id, sign
from appliance.trust.names import OIDC_ISSUER_V1, OIDC_ISSUER_V2, OPERATOR

_PRECERT_ENTRY = 1
_SHA256_ECDSA = b"\x04\x03"
_SCT_LIST = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")


@dataclass(frozen=True)
class Issuer:
    """An authority that signs certificates: its certificate and key."""

    certificate: x509.Certificate
    key: PrivateKey


class Usage(Enum):
    """What an issuing authority's or an end entity's key may be used for."""

    CODE_SIGNING = ExtendedKeyUsageOID.CODE_SIGNING
    TIME_STAMPING = ExtendedKeyUsageOID.TIME_STAMPING
    TLS_SERVER = ExtendedKeyUsageOID.SERVER_AUTH
    TLS_CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH


def name(common_name: str) -> x509.Name:
    """Distinguished name under our organisation."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, OPERATOR),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def root_certificate(key: PrivateKey, common_name: str, *, at: datetime, lifetime: timedelta) -> x509.Certificate:
    """A self-signed root."""
    subject = name(common_name)
    builder = _builder(key.public_key(), subject, subject, key.public_key(), at=at, lifetime=lifetime)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
    builder = builder.add_extension(_key_usage(authority=True), critical=True)
    return builder.sign(key, hashes.SHA256())


def issuing_certificate(
    key: ec.EllipticCurvePublicKey,
    common_name: str,
    usages: Sequence[Usage],
    issuer: Issuer,
    *,
    at: datetime,
    lifetime: timedelta,
) -> x509.Certificate:
    """A subordinate authority that may issue end entities of the given usages only."""
    builder = _builder(
        key, name(common_name), issuer.certificate.subject, issuer.key.public_key(), at=at, lifetime=lifetime
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(authority=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage.value for usage in usages]), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def end_entity_certificate(
    key: ec.EllipticCurvePublicKey,
    common_name: str,
    usages: Sequence[Usage],
    alternative_names: Sequence[x509.GeneralName],
    issuer: Issuer,
    *,
    at: datetime,
    lifetime: timedelta,
) -> x509.Certificate:
    """A TLS or time-stamping certificate. Time-stamping is critical and alone (RFC 3161 section 2.3)."""
    builder = _builder(
        key, name(common_name), issuer.certificate.subject, issuer.key.public_key(), at=at, lifetime=lifetime
    )
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(authority=False), critical=True)
    critical = Usage.TIME_STAMPING in usages
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage.value for usage in usages]), critical=critical)
    if alternative_names:
        builder = builder.add_extension(x509.SubjectAlternativeName(list(alternative_names)), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def signing_builder(
    key: ec.EllipticCurvePublicKey,
    identity: str,
    oidc_issuer: str,
    issuer: x509.Certificate,
    *,
    at: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    """A signing leaf, still without its SCT."""
    authority_key = issuer.public_key()
    assert isinstance(authority_key, ec.EllipticCurvePublicKey)  # noqa: S101 (our own authority's key)
    builder = _builder(key, x509.Name([]), issuer.subject, authority_key, at=at, lifetime=lifetime)
    builder = builder.add_extension(_key_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([Usage.CODE_SIGNING.value]), critical=False)
    san = x509.SubjectAlternativeName([identity_name(identity)])
    builder = builder.add_extension(san, critical=True)
    builder = builder.add_extension(x509.UnrecognizedExtension(OIDC_ISSUER_V1, oidc_issuer.encode()), critical=False)
    der = asn1.encode_der(oidc_issuer)
    return builder.add_extension(x509.UnrecognizedExtension(OIDC_ISSUER_V2, der), critical=False)


def identity_name(identity: str) -> x509.GeneralName:
    """A SAN entry for an identity: a URI where it has a scheme, an e-mail address otherwise."""
    return x509.UniformResourceIdentifier(identity) if "://" in identity else x509.RFC822Name(identity)


def with_sct(
    builder: x509.CertificateBuilder, issuer_key: PrivateKey, ct_key: PrivateKey, *, at: datetime
) -> tuple[x509.Certificate, bytes]:
    """Sign a leaf with an embedded SCT (RFC 6962 sections 3.2 and 3.3).

    Returns:
        The certificate, and the entry (issuer key hash and TBS without the SCT) for the certificate log.
    """
    tbs = builder.sign(issuer_key, hashes.SHA256()).tbs_certificate_bytes
    milliseconds = int(at.timestamp() * 1000)
    entry = key_id(issuer_key.public_key()) + struct.pack("!I", len(tbs))[1:] + tbs
    signed = struct.pack("!BBQH", 0, 0, milliseconds, _PRECERT_ENTRY) + entry + b"\x00\x00"
    signature = sign(ct_key, signed)
    sct = (
        struct.pack("!B32sQH", 0, key_id(ct_key.public_key()), milliseconds, 0)
        + _SHA256_ECDSA
        + struct.pack("!H", len(signature))
        + signature
    )
    listed = struct.pack("!H", len(sct)) + sct
    value = asn1.encode_der(struct.pack("!H", len(listed)) + listed)
    extended = builder.add_extension(x509.UnrecognizedExtension(_SCT_LIST, value), critical=False)
    certificate = extended.sign(issuer_key, hashes.SHA256())
    while not is_canonical(certificate.signature):  # every second ECDSA signature has a high S, which we never accept
        certificate = extended.sign(issuer_key, hashes.SHA256())
    return certificate, entry


def _builder(
    key: ec.EllipticCurvePublicKey,
    subject: x509.Name,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePublicKey,
    *,
    at: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(at)
        .not_valid_after(at + lifetime)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )
