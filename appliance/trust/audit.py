"""The log as an auditor sees it: exported entries and checkpoints, checked without any of the authority's keys.

An export holds every entry and every signed tree head. An auditor keeps the last tree head he has seen and checks that
each later one contains it: then nothing was removed or changed, and what was signed in the zone is all there.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from cryptography import x509

from appliance import documents
from appliance.errors import DocumentError, TrustError
from appliance.trust import checkpoint, merkle
from appliance.trust.authority import Authority
from appliance.trust.encoding import b64
from appliance.trust.names import statement_type
from appliance.trust.trusted_root import LogKey, read

MAX_EXPORT_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class Audited:
    """A log that was checked.

    Attributes:
        origin: its name.
        size, root: its tree head.
        checkpoint: its signed text, for the auditor to keep.
        signers: how many entries each identity has in it (transparency log only).
    """

    origin: str
    size: int
    root: bytes
    checkpoint: str
    signers: dict[str, int]


def export(authority: Authority, service: Literal["log", "ct"], *, at: datetime) -> bytes:
    """Every entry of the log in use, its tree head, and the proof that it contains its first tree."""
    log = authority.log(service, at=at)
    entries, head = log.entries(), log.checkpoint_text()
    return documents.write_json(
        {
            "_type": statement_type("log-export"),
            "schema_version": 1,
            "origin": log.origin,
            "checkpoint": head,
            "entries": [b64(entry) for entry in entries],
        }
    )


def audit(exported: bytes, trusted_root: bytes, *, earlier: str | None = None) -> Audited:
    """Check an export against the trusted root, and against a checkpoint seen before.

    Args:
        exported: what `export` wrote.
        trusted_root: `trusted_root.json`, which names the logs and their keys.
        earlier: the text of a checkpoint the auditor kept; the log must still contain it.

    Raises:
        TrustError: TRUST_LOG_EXPORT, TRUST_LOG_UNKNOWN, TRUST_LOG_CHECKPOINT, TRUST_LOG_DAMAGED,
            TRUST_LOG_INCONSISTENT.
    """
    origin, text, entries = _read(exported)
    key = _key(origin, trusted_root)
    leaves = [merkle.leaf_hash(entry) for entry in entries]
    head = checkpoint.read(text)
    checkpoint.verify(head, key.key, origin=origin)
    if head.size != len(leaves) or head.root != merkle.root(leaves):
        raise TrustError(
            "TRUST_LOG_DAMAGED",
            "the exported entries do not lead to the exported checkpoint",
            entries=len(leaves),
            checkpoint_size=head.size,
        )
    if earlier is not None:
        seen = checkpoint.read(earlier)
        checkpoint.verify(seen, key.key, origin=origin)
        if seen.size > head.size:
            raise TrustError(
                "TRUST_LOG_INCONSISTENT", "the log is shorter than it was", old_size=seen.size, new_size=head.size
            )
        proof = merkle.consistency_proof(leaves, seen.size) if seen.size else []
        if seen.size:
            merkle.verify_consistency(seen.size, seen.root, head.size, head.root, proof)
    return Audited(origin, head.size, head.root, text, _signers(entries))


def _read(exported: bytes) -> tuple[str, str, list[bytes]]:
    try:
        document = documents.read_json(exported, what="log export", max_bytes=MAX_EXPORT_BYTES)
        if document["_type"] != statement_type("log-export"):
            raise ValueError("it is something else")
        entries = [base64.b64decode(entry, validate=True) for entry in document["entries"]]
        return str(document["origin"]), str(document["checkpoint"]), entries
    except DocumentError as error:
        raise TrustError("TRUST_LOG_EXPORT", error.cause) from None
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise TrustError("TRUST_LOG_EXPORT", f"the log export cannot be read: {error!r}"[:300]) from None


def _key(origin: str, trusted_root: bytes) -> LogKey:
    anchors = read(trusted_root)
    for log in (*anchors.logs.values(), *anchors.certificate_logs.values()):
        if log.url == origin:
            return log
    raise TrustError("TRUST_LOG_UNKNOWN", "the export is of a log that is not trusted here", log=origin[:200])


def _signers(entries: list[bytes]) -> dict[str, int]:
    """Who signed how often; certificates' SANs, from entries that hold one."""
    counted: dict[str, int] = {}
    for entry in entries:
        identity = _identity(entry)
        if identity is not None:
            counted[identity] = counted.get(identity, 0) + 1
    return dict(sorted(counted.items()))


def _identity(entry: bytes) -> str | None:
    try:
        spec: Any = json.loads(entry)["spec"]
        pem = spec["signature"]["publicKey"]["content"] if "signature" in spec else spec["signatures"][0]["verifier"]
        certificate = x509.load_pem_x509_certificate(base64.b64decode(pem))
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return str(next(iter(san)).value)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, x509.ExtensionNotFound):
        return None
