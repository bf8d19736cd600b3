"""The log as an auditor sees it: exported entries, checkpoints and proofs, checked without the authority's keys.

An export holds every entry and the signed tree head. An auditor keeps the last tree head he has seen and checks that
each later one contains it: then nothing was removed or changed, and what was signed in the zone is all there. Where
the entries themselves are not his to see, a consistency proof (RFC 6962 section 2.1.2) shows the same without them.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cryptography import x509

from appliance import documents
from appliance.errors import DocumentError, TrustError
from appliance.files import read_regular
from appliance.trust import checkpoint, merkle
from appliance.trust.authority import Authority
from appliance.trust.encoding import b64
from appliance.trust.leaf import UNREADABLE
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
        signers: how many entries each identity has in it (transparency log only); None where a proof held no entries.
    """

    origin: str
    size: int
    root: bytes
    checkpoint: str
    signers: dict[str, int] | None


@dataclass(frozen=True)
class _Exported:
    """What an export says; of `entries` (all of them) and `hashes` (from `since` on) one is None."""

    origin: str
    checkpoint: str
    entries: list[bytes] | None
    since: str | None
    hashes: list[bytes] | None


def export(authority: Authority, name: str, *, at: datetime) -> bytes:
    """Every entry of a log and its tree head.

    Args:
        name: `log` or `ct`, the one in use at the time; or a log by its own name, retired or not, e.g. `log-1`.
    """
    log = authority.log(name, at=at)
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


def prove(authority: Authority, name: str, since: str, *, at: datetime) -> bytes:
    """The proof that a log still contains the tree of an earlier checkpoint, without any entry.

    Args:
        name: see `export`.
        since: the checkpoint's text, as an auditor keeps it.

    Raises:
        TrustError: TRUST_LOG_CHECKPOINT, TRUST_LOG_ORIGIN, TRUST_LOG_INCONSISTENT (this log does not contain it).
    """
    log = authority.log(name, at=at)
    head, seen = log.checkpoint_text(), checkpoint.read(since)
    if seen.origin != log.origin:
        raise TrustError("TRUST_LOG_ORIGIN", "the checkpoint is of another log", origin=seen.origin, log=log.origin)
    size = checkpoint.read(head).size
    leaves = [merkle.leaf_hash(entry) for entry in log.entries()[:size]]
    if seen.size > size or merkle.root(leaves[: seen.size]) != seen.root:
        raise TrustError(
            "TRUST_LOG_INCONSISTENT", "the log does not contain this checkpoint", old_size=seen.size, new_size=size
        )
    return documents.write_json(
        {
            "_type": statement_type("log-consistency"),
            "schema_version": 1,
            "origin": log.origin,
            "since": since,
            "checkpoint": head,
            "hashes": [b64(each) for each in (merkle.consistency_proof(leaves, seen.size) if seen.size else [])],
        }
    )


def audit(exported: bytes, trusted_root: bytes, *, earlier: str | None = None) -> Audited:
    """Check an export against the trusted root, and against a checkpoint seen before.

    Args:
        exported: what `export` or `prove` wrote.
        trusted_root: `trusted_root.json`, which names the logs and their keys.
        earlier: the text of a checkpoint the auditor kept; the log must still contain it.

    Raises:
        TrustError: TRUST_LOG_EXPORT, TRUST_LOG_UNKNOWN, TRUST_LOG_CHECKPOINT, TRUST_LOG_SIGNATURE, TRUST_LOG_ORIGIN,
            TRUST_LOG_DAMAGED, TRUST_LOG_INCONSISTENT.
    """
    found = _read(exported)
    key = _key(found.origin, trusted_root)
    head = checkpoint.read(found.checkpoint)
    checkpoint.verify(head, key.key, origin=found.origin)
    leaves = None if found.entries is None else [merkle.leaf_hash(entry) for entry in found.entries]
    if leaves is not None and (head.size, head.root) != (len(leaves), merkle.root(leaves)):
        raise TrustError(
            "TRUST_LOG_DAMAGED",
            "the exported entries do not lead to the exported checkpoint",
            entries=len(leaves),
            checkpoint_size=head.size,
        )
    if found.since is not None and earlier != found.since:
        raise TrustError("TRUST_LOG_EXPORT", "the proof starts from another checkpoint than the one that was kept")
    if earlier is not None:
        seen = checkpoint.read(earlier)
        checkpoint.verify(seen, key.key, origin=found.origin)
        if seen.size > head.size:
            raise TrustError(
                "TRUST_LOG_INCONSISTENT", "the log is shorter than it was", old_size=seen.size, new_size=head.size
            )
        if seen.size:
            proof = found.hashes if leaves is None else merkle.consistency_proof(leaves, seen.size)
            merkle.verify_consistency(seen.size, seen.root, head.size, head.root, proof or [])
    signers = None if found.entries is None else _signers(found.entries)
    return Audited(found.origin, head.size, head.root, found.checkpoint, signers)


def read_kept(path: Path) -> str:
    """The text of a checkpoint that an auditor kept in a file.

    Raises:
        FileError: see `files.read_regular`.
    """
    return read_regular(path, max_bytes=4096).decode("utf-8", "replace")


def _read(exported: bytes) -> _Exported:
    try:
        document = documents.read_json(exported, what="log export", max_bytes=MAX_EXPORT_BYTES)
        kind, origin, text = document["_type"], str(document["origin"]), str(document["checkpoint"])
        if kind == statement_type("log-export"):
            return _Exported(origin, text, _decoded(document["entries"]), None, None)
        if kind == statement_type("log-consistency"):
            return _Exported(origin, text, None, str(document["since"]), _decoded(document["hashes"]))
        raise ValueError("it is something else")
    except DocumentError as error:
        raise TrustError("TRUST_LOG_EXPORT", error.cause) from None
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise TrustError("TRUST_LOG_EXPORT", f"the log export cannot be read: {error!r}"[:300]) from None


def _decoded(listed: list[str]) -> list[bytes]:
    return [base64.b64decode(each, validate=True) for each in listed]


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
    except (*UNREADABLE, KeyError, IndexError, AttributeError, RecursionError, x509.ExtensionNotFound):
        return None
