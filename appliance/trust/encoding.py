"""The two encodings that signatures are made over: base64 text and canonical JSON."""

from __future__ import annotations

import binascii
from typing import Any

from appliance import documents


def b64(data: bytes) -> str:
    """Base64 with padding, as text."""
    return binascii.b2a_base64(data, newline=False).decode()


def canonical_json(value: Any) -> bytes:
    """RFC 8785, for the objects with ASCII keys, text and whole numbers that logs and SETs are signed over."""
    return documents.write_json(value).removesuffix(b"\n")
