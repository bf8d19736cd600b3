r"""Checkpoints: the log's signed statement of its size and root, in the signed-note form.

Form: `origin\nsize\nbase64 root\n\n(em dash) origin base64(first 4 bytes of the key id || signature)\n`, as
https://github.com/transparency-dev/formats/blob/main/log/README.md and Rekor write it.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric import ec

from appliance.errors import TrustError
from appliance.trust.keys import PrivateKey, key_id, sign, verifies

_FORM = re.compile(
    r"(?P<note>(?P<origin>[!-~]{1,200})\n(?P<size>0|[1-9][0-9]{0,18})\n(?P<root>[A-Za-z0-9+/]{43}=)\n)"
    r"\n\u2014 (?P<name>[!-~]{1,200}) (?P<signature>[A-Za-z0-9+/]{8,200}={0,2})\n"
)


@dataclass(frozen=True)
class Checkpoint:
    """A log's signed size and root.

    Attributes:
        origin: the log's name; ours is its base URL.
        size: number of leaves.
        root: root hash, 32 bytes.
        note: the signed text.
        key_hint: first four bytes of the signing key's id.
        signature: DER ECDSA signature over the note.
    """

    origin: str
    size: int
    root: bytes
    note: bytes
    key_hint: bytes
    signature: bytes


def write(key: PrivateKey, *, origin: str, size: int, root: bytes) -> str:
    """Sign a checkpoint."""
    note = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n"
    blob = key_id(key.public_key())[:4] + sign(key, note.encode())
    return f"{note}\n\u2014 {origin} {base64.b64encode(blob).decode()}\n"


def read(text: str) -> Checkpoint:
    """Parse a checkpoint with exactly one signature; nothing may stand before, between or after its parts.

    Raises:
        TrustError: TRUST_LOG_CHECKPOINT.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise TrustError("TRUST_LOG_CHECKPOINT", "the checkpoint is not a signed note with one signature")
    try:
        blob = base64.b64decode(match["signature"], validate=True)
        root = base64.b64decode(match["root"], validate=True)
    except binascii.Error:
        raise TrustError("TRUST_LOG_CHECKPOINT", "the checkpoint is not base64 where it should be") from None
    exact = base64.b64encode(blob).decode() == match["signature"] and base64.b64encode(root).decode() == match["root"]
    if not exact or match["name"] != match["origin"]:
        raise TrustError("TRUST_LOG_CHECKPOINT", "the checkpoint's signature line does not fit its origin")
    return Checkpoint(match["origin"], int(match["size"]), root, match["note"].encode(), blob[:4], blob[4:])


def verify(checkpoint: Checkpoint, key: ec.EllipticCurvePublicKey, *, origin: str) -> None:
    """Check a checkpoint's origin and signature.

    Raises:
        TrustError: TRUST_LOG_ORIGIN, TRUST_LOG_SIGNATURE.
    """
    if checkpoint.origin != origin:
        raise TrustError(
            "TRUST_LOG_ORIGIN", "the checkpoint is of another log", origin=checkpoint.origin, expected=origin
        )
    if checkpoint.key_hint != key_id(key)[:4]:
        raise TrustError("TRUST_LOG_SIGNATURE", "the checkpoint is signed by another key", origin=origin)
    if not verifies(key, checkpoint.signature, checkpoint.note):
        raise TrustError("TRUST_LOG_SIGNATURE", "the checkpoint's signature is wrong", origin=origin)
