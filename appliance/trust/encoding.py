"""The two encodings that signatures are made over: base64 text and canonical JSON."""

from __future__ import annotations

import base64
from typing import Any

import rfc8785


def b64(data: bytes) -> str:
    """Base64 with padding, as text."""
    return base64.b64encode(data).decode()


def canonical_json(value: Any) -> bytes:
    """RFC 8785: what logs and SETs are signed over."""
    return rfc8785.dumps(value)
