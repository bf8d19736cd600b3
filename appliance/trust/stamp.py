"""The time-stamp in a bundle: whose it is, what it stamps, when it says the signature existed."""

from __future__ import annotations

import hashlib
from datetime import datetime

from rfc3161_client import decode_timestamp_response

from appliance.errors import TrustError
from appliance.trust import timestamping
from appliance.trust.trusted_root import Anchors, Chain


def verify_token(token: bytes, message: bytes, anchors: Anchors) -> tuple[datetime, Chain]:
    """Check an RFC 3161 token over `message`.

    Returns:
        The stated time, UTC, and the chain of the authority that states it.

    Raises:
        TrustError: TRUST_TIMESTAMP_FORM (unreadable, or not in our form), TRUST_TIMESTAMP (not of a trusted
            authority, or of another signature), TRUST_KEY_WINDOW.
    """
    try:
        info = decode_timestamp_response(token).tst_info
        time, imprint, serial = info.gen_time, info.message_imprint.message, info.serial_number
    except ValueError as error:
        raise TrustError("TRUST_TIMESTAMP_FORM", f"the time-stamp cannot be read: {str(error)[:200]}") from None
    chain = _signer(token, anchors)
    if imprint != hashlib.sha256(message).digest():
        raise TrustError("TRUST_TIMESTAMP", "the time-stamp is of another signature", stamped=imprint.hex())
    certificate = chain.certificates[0]
    timestamping.check(token, certificate, imprint=imprint, at=time, serial=serial)
    inside = certificate.not_valid_before_utc <= time <= certificate.not_valid_after_utc
    if not inside or not chain.window.holds(time):
        raise TrustError(
            "TRUST_KEY_WINDOW",
            f"the time-stamping authority's key was not valid at {time:%Y-%m-%dT%H:%M:%SZ}",
            valid_from=chain.window.start,
            valid_until=chain.window.end,
        )
    return time, chain


def _signer(token: bytes, anchors: Anchors) -> Chain:
    """The authority whose certificate lies in the token; that it lies in the right place, `timestamping.check` sees."""
    for chain in anchors.timestampers:
        if timestamping.carries(token, chain.certificates[0]):
            return chain
    raise TrustError("TRUST_TIMESTAMP", "the time-stamp is not of a trusted authority")
