"""The time-stamp in a bundle: whose it is, what it stamps, when it says the signature existed."""

from __future__ import annotations

import hashlib
from datetime import datetime

from rfc3161_client import decode_timestamp_response

from appliance.errors import TrustError
from appliance.trust import timestamping
from appliance.trust.trusted_root import Anchors, Chain, Window


def verify_token(token: bytes, message: bytes, anchors: Anchors) -> tuple[datetime, Chain]:
    """Check an RFC 3161 token over `message`.

    Returns:
        The stated time, UTC, and the chain of the authority that states it.

    Raises:
        TrustError: TRUST_TIMESTAMP_FORM (unreadable, or not in our form), TRUST_TIMESTAMP_AUTHORITY (none that is
            trusted), TRUST_TIMESTAMP_IMPRINT (of another signature), TRUST_TIMESTAMP (wrongly signed).
    """
    try:
        info = decode_timestamp_response(token).tst_info
        time, imprint, serial = info.gen_time, info.message_imprint.message, info.serial_number
    except ValueError as error:
        raise TrustError("TRUST_TIMESTAMP_FORM", f"the time-stamp cannot be read: {str(error)[:200]}") from None
    chain = _signer(token, anchors)
    if imprint != hashlib.sha256(message).digest():
        raise TrustError("TRUST_TIMESTAMP_IMPRINT", "the time-stamp is of another signature", stamped=imprint.hex())
    timestamping.check(token, chain.certificates[0], imprint=imprint, at=time, serial=serial)
    return time, chain


def window_of(chain: Chain) -> Window:
    """When an authority's time-stamps count: its key's window, within its certificate's validity.

    Not looked at by `verify_token`, because TRUST_KEY_WINDOW must mean that all else has held (`evidence.examine`).
    """
    certificate, window = chain.certificates[0], chain.window
    ends = [certificate.not_valid_after_utc, *([] if window.end is None else [window.end])]
    return Window(max(certificate.not_valid_before_utc, window.start), min(ends))


def _signer(token: bytes, anchors: Anchors) -> Chain:
    """The authority whose certificate lies in the token; that it lies in the right place, `timestamping.check` sees."""
    for chain in anchors.timestampers:
        if timestamping.carries(token, chain.certificates[0]):
            return chain
    raise TrustError("TRUST_TIMESTAMP_AUTHORITY", "the time-stamp is not of a trusted authority")
