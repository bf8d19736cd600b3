"""Time-stamping: issue RFC 3161 tokens, and pin their form down to the byte.

A token is the CMS structure of RFC 5652 around a TSTInfo, with the signing certificate named by ESSCertIDv2 (RFC
5816). `openssl ts -verify`, rfc3161-client and @sigstore/verify accept it. `check` rebuilds a token from its few
free fields and compares: no unsigned attribute, second signer or stray byte survives.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ObjectIdentifier

from appliance.errors import TrustError
from appliance.trust.der import EXPLICIT_0, OCTETS, SEQUENCE, SET, der, tlv
from appliance.trust.keys import PrivateKey, is_canonical, sign, verifies

_SIGNED_DATA: Final = ObjectIdentifier("1.2.840.113549.1.7.2")
_TST_INFO: Final = ObjectIdentifier("1.2.840.113549.1.9.16.1.4")
_CONTENT_TYPE: Final = ObjectIdentifier("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST: Final = ObjectIdentifier("1.2.840.113549.1.9.4")
_SIGNING_CERTIFICATE_V2: Final = ObjectIdentifier("1.2.840.113549.1.9.16.2.47")
_SHA256: Final = ObjectIdentifier("2.16.840.1.101.3.4.2.1")
_ECDSA_SHA256: Final = ObjectIdentifier("1.2.840.10045.4.3.2")
POLICY: Final = ObjectIdentifier("1.3.6.1.4.1.57264.2")  # the policy that Sigstore's own time-stamping names


def issue(key: PrivateKey, certificate: x509.Certificate, message: bytes, *, at: datetime, serial: int) -> bytes:
    """Time-stamp a message.

    Args:
        key: the time-stamping key.
        certificate: its certificate.
        message: what is stamped (a signature); its SHA-256 goes into the token.
        at: the time to state, whole seconds, UTC.
        serial: a number never used before, up to 160 bits.

    Returns:
        A DER TimeStampResp with status granted.
    """
    info = _tst_info(hashlib.sha256(message).digest(), at, serial)
    fixed = _fixed_parts(certificate)
    attributes = _signed_attributes(info, fixed)
    return _response(info, fixed, attributes, sign(key, tlv(SET, attributes)))


def carries(token: bytes, certificate: x509.Certificate) -> bool:
    """Whether a token holds a certificate, anywhere."""
    return _fixed_parts(certificate).certificate in token


def check(token: bytes, certificate: x509.Certificate, *, imprint: bytes, at: datetime, serial: int) -> None:
    """Refuse a token that is not byte for byte what `issue` writes for these fields, or is not signed by this key.

    Raises:
        TrustError: TRUST_TIMESTAMP_FORM, TRUST_TIMESTAMP (the signature).
    """
    info, fixed = _tst_info(imprint, at, serial), _fixed_parts(certificate)
    attributes = _signed_attributes(info, fixed)
    for length in range(64, 73):  # DER of an ECDSA P-256 signature; shorter ones do not happen
        signature = token[-length:]
        if token[-length - 2 : -length] != bytes((OCTETS, length)) or not is_canonical(signature):
            continue  # the signature comes last
        if _response(info, fixed, attributes, signature) == token:
            break
    else:
        raise TrustError("TRUST_TIMESTAMP_FORM", "the time-stamp is not in the one form that the authority writes")
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not verifies(key, signature, tlv(SET, attributes)):
        raise TrustError("TRUST_TIMESTAMP", "the time-stamp's signature is wrong")


@dataclass(frozen=True)
class _Fixed:
    """What all tokens of one certificate have in common, DER.

    Attributes:
        certificate: the certificate, as the token carries it.
        signer: issuer and serial number, as the token names the signer.
        reference: the signed attribute that names the certificate by its hash (ESSCertIDv2).
    """

    certificate: bytes
    signer: bytes
    reference: bytes


@lru_cache(maxsize=64)
def _fixed_parts(certificate: x509.Certificate) -> _Fixed:
    encoded = certificate.public_bytes(Encoding.DER)
    named = tlv(SEQUENCE, tlv(SEQUENCE, tlv(SEQUENCE, der(hashlib.sha256(encoded).digest()))))
    return _Fixed(
        certificate=tlv(EXPLICIT_0, encoded),
        signer=tlv(SEQUENCE, certificate.issuer.public_bytes(), der(certificate.serial_number)),
        reference=_attribute(_SIGNING_CERTIFICATE_V2, named),
    )


def _tst_info(imprint: bytes, at: datetime, serial: int) -> bytes:
    return tlv(
        SEQUENCE,
        _DER_VERSION_1,
        _DER_POLICY,
        tlv(SEQUENCE, _DER_SHA256, tlv(OCTETS, imprint)),
        der(serial),
        der(asn1.GeneralizedTime(at.astimezone(UTC).replace(microsecond=0))),
    )


def _signed_attributes(info: bytes, fixed: _Fixed) -> bytes:
    digest = _attribute(_MESSAGE_DIGEST, tlv(OCTETS, hashlib.sha256(info).digest()))
    return b"".join(sorted((_DER_CONTENT_TYPE, digest, fixed.reference)))


def _response(info: bytes, fixed: _Fixed, attributes: bytes, signature: bytes) -> bytes:
    signer = tlv(
        SEQUENCE,
        _DER_VERSION_1,
        fixed.signer,
        _DER_SHA256,
        tlv(EXPLICIT_0, attributes),
        _DER_ECDSA_SHA256,
        tlv(OCTETS, signature),
    )
    signed_data = tlv(
        SEQUENCE,
        _DER_VERSION_3,
        _DER_DIGEST_ALGORITHMS,
        tlv(SEQUENCE, _DER_TST_INFO, tlv(EXPLICIT_0, tlv(OCTETS, info))),
        fixed.certificate,
        tlv(SET, signer),
    )
    return tlv(SEQUENCE, _DER_GRANTED, tlv(SEQUENCE, _DER_SIGNED_DATA, tlv(EXPLICIT_0, signed_data)))


def _attribute(identifier: ObjectIdentifier, value: bytes) -> bytes:
    return tlv(SEQUENCE, der(identifier), tlv(SET, value))


# every token holds these: encoded once
_DER_VERSION_1: Final = der(1)
_DER_VERSION_3: Final = der(3)
_DER_GRANTED: Final = tlv(SEQUENCE, der(0))
_DER_POLICY: Final = der(POLICY)
_DER_TST_INFO: Final = der(_TST_INFO)
_DER_SIGNED_DATA: Final = der(_SIGNED_DATA)
_DER_SHA256: Final = tlv(SEQUENCE, der(_SHA256))
_DER_ECDSA_SHA256: Final = tlv(SEQUENCE, der(_ECDSA_SHA256))
_DER_DIGEST_ALGORITHMS: Final = tlv(SET, _DER_SHA256)
_DER_CONTENT_TYPE: Final = _attribute(_CONTENT_TYPE, _DER_TST_INFO)
