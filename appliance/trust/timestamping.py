"""Time-stamping: issue RFC 3161 tokens, and pin their form down to the byte.

A token is the CMS structure of RFC 5652 around a TSTInfo, with the signing certificate named by ESSCertIDv2 (RFC
5816). `openssl ts -verify`, rfc3161-client and @sigstore/verify accept it. `check` rebuilds a token from its few
free fields and compares: no unsigned attribute, second signer or stray byte survives.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ObjectIdentifier

from appliance.errors import TrustError
from appliance.trust.keys import PrivateKey, is_canonical, sign, verifies

_SIGNED_DATA: Final = ObjectIdentifier("1.2.840.113549.1.7.2")
_TST_INFO: Final = ObjectIdentifier("1.2.840.113549.1.9.16.1.4")
_CONTENT_TYPE: Final = ObjectIdentifier("1.2.840.113549.1.9.3")
_MESSAGE_DIGEST: Final = ObjectIdentifier("1.2.840.113549.1.9.4")
_SIGNING_CERTIFICATE_V2: Final = ObjectIdentifier("1.2.840.113549.1.9.16.2.47")
_SHA256: Final = ObjectIdentifier("2.16.840.1.101.3.4.2.1")
_ECDSA_SHA256: Final = ObjectIdentifier("1.2.840.10045.4.3.2")
POLICY: Final = ObjectIdentifier("1.3.6.1.4.1.57264.2")  # the policy that Sigstore's own time-stamping names

_SEQUENCE, _SET, _EXPLICIT_0 = 0x30, 0x31, 0xA0


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
    attributes = _signed_attributes(info, certificate)
    return _response(info, certificate, attributes, sign(key, _tlv(_SET, attributes)))


def check(token: bytes, certificate: x509.Certificate, *, imprint: bytes, at: datetime, serial: int) -> None:
    """Refuse a token that is not byte for byte what `issue` writes for these fields, or is not signed by this key.

    Raises:
        TrustError: TRUST_TIMESTAMP_FORM, TRUST_TIMESTAMP (the signature).
    """
    info = _tst_info(imprint, at, serial)
    attributes = _signed_attributes(info, certificate)
    for length in range(64, 73):  # DER of an ECDSA P-256 signature; shorter ones do not happen
        signature = token[-length:]
        if is_canonical(signature) and _response(info, certificate, attributes, signature) == token:
            break
    else:
        raise TrustError("TRUST_TIMESTAMP_FORM", "the time-stamp is not in the one form that the authority writes")
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not verifies(key, signature, _tlv(_SET, attributes)):
        raise TrustError("TRUST_TIMESTAMP", "the time-stamp's signature is wrong")


def _tst_info(imprint: bytes, at: datetime, serial: int) -> bytes:
    return _tlv(
        _SEQUENCE,
        _der(1),
        _der(POLICY),
        _tlv(_SEQUENCE, _algorithm(_SHA256), _der(imprint)),
        _der(serial),
        _der(asn1.GeneralizedTime(at.astimezone(UTC).replace(microsecond=0))),
    )


def _signed_attributes(info: bytes, certificate: x509.Certificate) -> bytes:
    certificate_hash = hashlib.sha256(certificate.public_bytes(Encoding.DER)).digest()
    attributes = [
        _attribute(_CONTENT_TYPE, _der(_TST_INFO)),
        _attribute(_MESSAGE_DIGEST, _der(hashlib.sha256(info).digest())),
        _attribute(
            _SIGNING_CERTIFICATE_V2,
            _tlv(_SEQUENCE, _tlv(_SEQUENCE, _tlv(_SEQUENCE, _der(certificate_hash)))),
        ),
    ]
    return b"".join(sorted(attributes))


def _response(info: bytes, certificate: x509.Certificate, attributes: bytes, signature: bytes) -> bytes:
    signer = _tlv(
        _SEQUENCE,
        _der(1),
        _tlv(_SEQUENCE, certificate.issuer.public_bytes(), _der(certificate.serial_number)),
        _algorithm(_SHA256),
        _tlv(_EXPLICIT_0, attributes),
        _algorithm(_ECDSA_SHA256),
        _der(signature),
    )
    signed_data = _tlv(
        _SEQUENCE,
        _der(3),
        _tlv(_SET, _algorithm(_SHA256)),
        _tlv(_SEQUENCE, _der(_TST_INFO), _tlv(_EXPLICIT_0, _der(info))),
        _tlv(_EXPLICIT_0, certificate.public_bytes(Encoding.DER)),
        _tlv(_SET, signer),
    )
    content = _tlv(_SEQUENCE, _der(_SIGNED_DATA), _tlv(_EXPLICIT_0, signed_data))
    return _tlv(_SEQUENCE, _tlv(_SEQUENCE, _der(0)), content)


def _algorithm(identifier: ObjectIdentifier) -> bytes:
    return _tlv(_SEQUENCE, _der(identifier))


def _attribute(identifier: ObjectIdentifier, value: bytes) -> bytes:
    return _tlv(_SEQUENCE, _der(identifier), _tlv(_SET, value))


def _der(value: Any) -> bytes:
    return asn1.encode_der(value)


def _tlv(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content
