"""DER by hand, for the few structures whose bytes we fix: time-stamp tokens and encrypted keys (X.690 section 10)."""

from __future__ import annotations

from typing import Any, Final

from cryptography.hazmat import asn1

SEQUENCE: Final = 0x30
SET: Final = 0x31
OCTETS: Final = 0x04
EXPLICIT_0: Final = 0xA0


def der(value: Any) -> bytes:
    """A plain value: a whole number, bytes, an object identifier, a time."""
    return asn1.encode_der(value)


def tlv(tag: int, *parts: bytes) -> bytes:
    """Tag, length and content, the content joined from its parts."""
    content = b"".join(parts)
    length = len(content)
    if length < 0x80:
        return bytes([tag, length]) + content
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content
