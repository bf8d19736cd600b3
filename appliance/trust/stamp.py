"""The time-stamp in a bundle: whose it is, what it stamps, when it says the signature existed."""

from __future__ import annotations

import hashlib
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric import ec
from rfc3161_client import TimeStampResponse, VerificationError, VerifierBuilder, decode_timestamp_response

from appliance.errors import TrustError
from appliance.trust.timestamping import check_form
from appliance.trust.trusted_root import Anchors, Chain


def verify_token(token: bytes, message: bytes, anchors: Anchors) -> datetime:
    """Check an RFC 3161 token over `message`.

    Returns:
        The stated time, UTC.

    Raises:
        TrustError: TRUST_TIMESTAMP_FORM (unreadable, or not in our form), TRUST_TIMESTAMP (not of a trusted
            authority, or of another signature), TRUST_KEY_WINDOW.
    """
    try:
        response = decode_timestamp_response(token)
        time = response.tst_info.gen_time
        imprint = response.tst_info.message_imprint.message
        serial = response.tst_info.serial_number
    except ValueError as error:
        raise TrustError("TRUST_TIMESTAMP_FORM", f"the time-stamp cannot be read: {str(error)[:200]}") from None
    chain = _signer(response, imprint, anchors)
    if imprint != hashlib.sha256(message).digest():
        raise TrustError("TRUST_TIMESTAMP", "the time-stamp is of another signature", stamped=imprint.hex())
    check_form(token, chain.certificates[0], imprint=imprint, at=time, serial=serial)
    certificate = chain.certificates[0]
    inside = certificate.not_valid_before_utc <= time <= certificate.not_valid_after_utc
    if not inside or not chain.window.holds(time):
        raise TrustError(
            "TRUST_KEY_WINDOW",
            f"the time-stamping authority's key was not valid at {time:%Y-%m-%dT%H:%M:%SZ}",
            valid_from=chain.window.start,
            valid_until=chain.window.end,
        )
    return time


def _signer(response: TimeStampResponse, imprint: bytes, anchors: Anchors) -> Chain:
    reasons: list[str] = []
    for chain in anchors.timestampers:
        if not isinstance(chain.certificates[0].public_key(), ec.EllipticCurvePublicKey):
            continue
        builder = VerifierBuilder().tsa_certificate(chain.certificates[0])
        for certificate in chain.certificates[1:-1]:
            builder = builder.add_intermediate_certificate(certificate)
        try:
            builder.add_root_certificate(chain.certificates[-1]).build().verify(response, imprint)
        except (VerificationError, ValueError) as error:
            reasons.append(str(error)[:200])
            continue
        return chain
    raise TrustError("TRUST_TIMESTAMP", "the time-stamp is not of a trusted authority", reasons=reasons)
