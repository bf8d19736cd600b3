"""The cryptographic evidence in a signature bundle, checked link by link. Pure: bytes in, facts out.

Our own checks come first, because each link has its own refusal and because they are narrower than Sigstore's: one
certificate profile, both ends of every key's validity window, the log entry rebuilt to the byte. Then the stock
`sigstore` verifier gives its opinion on the same bytes; what it refuses is refused. An accepted signature has passed
both, so a gap in either one alone opens nothing.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives.serialization import Encoding

from appliance.errors import TrustError
from appliance.trust import bundle_format, checkpoint, merkle, trusted_root
from appliance.trust.bundle_format import SignatureBundle
from appliance.trust.encoding import b64, canonical_json
from appliance.trust.keys import is_canonical, verifies
from appliance.trust.leaf import Leaf, read_leaf
from appliance.trust.names import domain_of
from appliance.trust.stamp import verify_token, window_of
from appliance.trust.trusted_root import Anchors, Chain, LogKey

if TYPE_CHECKING:
    from sigstore.verify import Verifier


@dataclass(frozen=True)
class Evidence:
    """What a bundle proves once every link has held.

    Attributes:
        identity, issuer: who signed, as the certificate says.
        signed_at: the time-stamping authority's time.
        certificate_serial: of the signing leaf.
        log: key id of the transparency log, hex.
        log_index: the entry's index there.
        envelope: payload type and payload of a DSSE bundle, None of a statement's.
    """

    identity: str
    issuer: str
    signed_at: datetime
    certificate_serial: int
    log: str
    log_index: int
    envelope: tuple[str, bytes] | None


@dataclass(frozen=True)
class _Prepared:
    anchors: Anchors
    verifier: Verifier


@lru_cache(maxsize=8)
def _prepared(document: bytes) -> _Prepared:
    """Parse trusted_root.json once for all signatures under it (it is the key: same bytes, same answer)."""
    import appliance.trust.tuf_api  # noqa: F401, I001 (before sigstore, see there)
    from sigstore.verify import Verifier

    logging.getLogger("sigstore").setLevel(logging.CRITICAL)
    anchors = trusted_root.read(document)
    return _Prepared(anchors, Verifier(trusted_root=trusted_root.for_sigstore(document)))


def examine(raw: bytes, *, trusted_root_document: bytes, statement: bytes | None) -> Evidence:
    """Check a bundle's evidence.

    Args:
        raw: the bundle's bytes.
        trusted_root_document: `trusted_root.json`, authenticated before.
        statement: the signed bytes for a statement's bundle; None where an envelope is expected.

    Raises:
        TrustError: a code for each link, see `catalogue/trust.yaml`.
    """
    bundle = bundle_format.read(raw)
    prepared = _prepared(trusted_root_document)
    anchors = prepared.anchors
    signed = _signed_bytes(bundle, statement)

    leaf = read_leaf(bundle.verification_material.certificate.raw_bytes, anchors)
    signed_at, stamper = verify_token(bundle.token, bundle.signature, anchors)
    integrated_at = _entry_time(bundle)
    log = _check_log(bundle, anchors)
    _check_signature(leaf, bundle, signed)
    _check_body(bundle, leaf, signed)
    _check_domain(leaf, log, stamper)
    for time in (signed_at, integrated_at, leaf.sct_time):  # each by another key: none of them alone can backdate
        leaf.check_valid_at(time)
    _second_opinion(raw, prepared.verifier, leaf, statement)
    for window, time, what in (  # last: what they refuse is in due form, and of a key that was given up since
        (window_of(stamper), signed_at, "the time-stamping authority"),
        (leaf.authority.window, signed_at, "the signing authority"),
        (leaf.certificate_log.window, leaf.sct_time, "the certificate log"),
        (log.window, integrated_at, "the transparency log"),
    ):
        if not window.holds(time):
            raise TrustError(
                "TRUST_KEY_WINDOW",
                f"{what}'s key was not valid at {time:%Y-%m-%dT%H:%M:%SZ}",
                valid_from=window.start,
                valid_until=window.end,
                identity=leaf.identity,
                issuer=leaf.issuer,
            )

    envelope = bundle.dsse_envelope
    return Evidence(
        identity=leaf.identity,
        issuer=leaf.issuer,
        signed_at=signed_at,
        certificate_serial=leaf.certificate.serial_number,
        log=bundle.entry.log_id.key_id.hex(),
        log_index=bundle.entry.log_index,
        envelope=None if envelope is None else (envelope.payload_type, envelope.payload),
    )


def _signed_bytes(bundle: SignatureBundle, statement: bytes | None) -> bytes:
    """What the signature must cover: the statement itself, or the envelope's PAE."""
    kind = bundle.entry.kind_version.kind
    envelope, message = bundle.dsse_envelope, bundle.message_signature
    if statement is not None and message is not None and envelope is None and kind == "hashedrekord":
        if message.message_digest.digest != hashlib.sha256(statement).digest():
            raise TrustError("TRUST_DIGEST", "the signature is of other bytes than these")
        return statement
    if statement is None and message is None and envelope is not None and kind == "dsse":
        name = envelope.payload_type.encode()
        return b"DSSEv1 %d %s %d %s" % (len(name), name, len(envelope.payload), envelope.payload)
    wanted = "an artifact" if statement is None else "a statement"
    raise TrustError("TRUST_BUNDLE_CONTENT", f"the bundle is not a signature of {wanted}", entry_kind=kind)


def _entry_time(bundle: SignatureBundle) -> datetime:
    try:
        return datetime.fromtimestamp(bundle.entry.integrated_time, UTC)
    except (OverflowError, ValueError, OSError):
        raise TrustError("TRUST_LOG_TIME", "the log entry's time is out of range") from None


def _check_log(bundle: SignatureBundle, anchors: Anchors) -> LogKey:
    """Log known, SET, checkpoint, inclusion, and that all of them speak of one entry."""
    entry, proof = bundle.entry, bundle.entry.inclusion_proof
    log = anchors.logs.get(entry.log_id.key_id)
    if log is None:
        raise TrustError(
            "TRUST_LOG_UNKNOWN", "the entry is of a log that is not trusted here", log=entry.log_id.key_id.hex()
        )
    head = checkpoint.read(proof.checkpoint.envelope)
    checkpoint.verify(head, log.key, origin=log.url)
    if (head.size, head.root) != (proof.tree_size, proof.root_hash):
        raise TrustError(
            "TRUST_LOG_TREE",
            "the proof leads to another tree than the checkpoint's",
            checkpoint_size=head.size,
            proof_size=proof.tree_size,
        )
    if entry.log_index != proof.log_index:
        raise TrustError("TRUST_LOG_PROOF", "the proof is of another index", log_index=entry.log_index)
    leaf = merkle.leaf_hash(entry.canonicalized_body)
    merkle.verify_inclusion(leaf, proof.log_index, proof.tree_size, proof.hashes, proof.root_hash)
    promise = canonical_json(
        {
            "body": b64(entry.canonicalized_body),
            "integratedTime": entry.integrated_time,
            "logID": entry.log_id.key_id.hex(),
            "logIndex": entry.log_index,
        }
    )
    if not verifies(log.key, entry.inclusion_promise.signed_entry_timestamp, promise):
        raise TrustError("TRUST_LOG_PROMISE", "the log's signed entry time-stamp is wrong", log_index=entry.log_index)
    return log


def _check_domain(leaf: Leaf, log: LogKey, stamper: Chain) -> None:
    """Everything must be of one authority: a peer's stolen log or time-stamping key helps nobody elsewhere."""
    names = (leaf.issuer, leaf.certificate_log.url, log.url, stamper.uri)
    if len({domain_of(name) for name in names}) != 1:
        raise TrustError("TRUST_DOMAIN", "the signature mixes services of several authorities", services=names)


def _check_signature(leaf: Leaf, bundle: SignatureBundle, signed: bytes) -> None:
    if not is_canonical(bundle.signature):
        raise TrustError("TRUST_SIGNATURE_FORM", "the signature is not in the one form (DER, low S) of its value")
    if not verifies(leaf.key, bundle.signature, signed):
        raise TrustError("TRUST_SIGNATURE", "the signature does not fit the certificate's key", identity=leaf.identity)


def _check_body(bundle: SignatureBundle, leaf: Leaf, signed: bytes) -> None:
    """The logged entry must be, byte for byte, the one that this signature, key and payload make."""
    pem = b64(leaf.certificate.public_bytes(Encoding.PEM))
    signature = b64(bundle.signature)
    envelope = bundle.dsse_envelope
    if envelope is None:
        spec = {
            "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(signed).hexdigest()}},
            "signature": {"content": signature, "publicKey": {"content": pem}},
        }
    else:
        document = {
            "payload": b64(envelope.payload),
            "payloadType": envelope.payload_type,
            "signatures": [{"sig": signature}],
        }
        spec = {
            "envelopeHash": {"algorithm": "sha256", "value": hashlib.sha256(canonical_json(document)).hexdigest()},
            "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(envelope.payload).hexdigest()},
            "signatures": [{"signature": signature, "verifier": pem}],
        }
    kind = "hashedrekord" if envelope is None else "dsse"
    if canonical_json({"apiVersion": "0.0.1", "kind": kind, "spec": spec}) != bundle.entry.canonicalized_body:
        raise TrustError("TRUST_LOG_BODY", "the log entry is about another signature", log_index=bundle.entry.log_index)


def _second_opinion(raw: bytes, verifier: Verifier, leaf: Leaf, statement: bytes | None) -> None:
    from sigstore.errors import Error
    from sigstore.models import Bundle
    from sigstore.verify import policy

    identity = policy.Identity(identity=leaf.identity, issuer=leaf.issuer)
    try:
        parsed = Bundle.from_json(raw)
        if statement is None:
            verifier.verify_dsse(parsed, identity)
        else:
            verifier.verify_artifact(statement, parsed, identity)
    except (Error, ValueError) as error:
        raise TrustError("TRUST_SIGSTORE", f"sigstore refuses it: {str(error)[:300]}") from None
