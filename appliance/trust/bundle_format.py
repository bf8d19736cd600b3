"""The one shape of Sigstore bundle this zone writes and accepts: v0.3, a leaf, one log entry, one time-stamp.

Sigstore allows much more (older versions, chains, several entries). Whatever we do not write we do not read: unknown
fields, other versions, a second entry and any encoding but our canonical one are refused before a signature is
looked at. So the bytes of an accepted bundle cannot be changed at all without it being refused.
"""

from __future__ import annotations

import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from appliance import documents
from appliance.errors import DocumentError, TrustError
from appliance.trust.encoding import b64
from appliance.trust.names import BUNDLE_MEDIA_TYPE

MAX_BYTES = 256 * 1024  # bytes of a bundle
_MAX_PROOF = 64  # hashes: a tree of 2^64 leaves


_CODES = {  # what pydantic finds -> what it means here
    "missing": "TRUST_BUNDLE_INCOMPLETE",
    "too_short": "TRUST_BUNDLE_INCOMPLETE",
    "extra_forbidden": "TRUST_BUNDLE_SURPLUS",
    "too_long": "TRUST_BUNDLE_SURPLUS",
    "value_error": "TRUST_BUNDLE_ENCODING",  # of base64 and whole numbers, below
}


def _exact_base64(value: Any) -> bytes:
    if not isinstance(value, str):
        raise ValueError("base64 text is expected")  # noqa: TRY004 (pydantic turns ValueError into a refusal)
    try:
        data = binascii.a2b_base64(value, strict_mode=True)
    except ValueError:
        raise ValueError("not base64") from None
    if b64(data) != value:
        raise ValueError("not canonical base64")
    return data


def _exact_integer(value: Any) -> int:
    if not isinstance(value, str) or not value.isascii() or not value.isdigit() or str(int(value[:20])) != value:
        raise ValueError("a whole number as text is expected")
    return int(value)


Bytes = Annotated[bytes, BeforeValidator(_exact_base64)]
Integer = Annotated[int, BeforeValidator(_exact_integer), Field(ge=0, lt=2**63)]


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel)


class Certificate(_Message):
    """The signing leaf, DER."""

    raw_bytes: Bytes


class LogId(_Message):
    """SHA-256 of the log's key."""

    key_id: Bytes


class KindVersion(_Message):
    """What kind of entry the log holds."""

    kind: Literal["hashedrekord", "dsse"]
    version: Literal["0.0.1"]


class InclusionPromise(_Message):
    """The SET."""

    signed_entry_timestamp: Bytes


class CheckpointEnvelope(_Message):
    """A signed note."""

    envelope: Annotated[str, Field(max_length=1024)]


class InclusionProof(_Message):
    """The audit path and the tree head it leads to."""

    log_index: Integer
    root_hash: Bytes
    tree_size: Integer
    hashes: Annotated[tuple[Bytes, ...], Field(max_length=_MAX_PROOF)]
    checkpoint: CheckpointEnvelope


class LogEntry(_Message):
    """The transparency log's entry."""

    log_index: Integer
    log_id: LogId
    kind_version: KindVersion
    integrated_time: Integer
    inclusion_promise: InclusionPromise
    inclusion_proof: InclusionProof
    canonicalized_body: Bytes


class SignedTimestamp(_Message):
    """A DER TimeStampResp."""

    signed_timestamp: Bytes


class TimestampData(_Message):
    """Exactly one RFC 3161 token."""

    rfc3161_timestamps: Annotated[
        tuple[SignedTimestamp, ...], Field(min_length=1, max_length=1, alias="rfc3161Timestamps")
    ]


class Material(_Message):
    """What a signature is verified with."""

    certificate: Certificate
    tlog_entries: Annotated[tuple[LogEntry, ...], Field(min_length=1, max_length=1)]
    timestamp_verification_data: TimestampData


class MessageDigest(_Message):
    """Digest of the signed statement."""

    algorithm: Literal["SHA2_256"]
    digest: Bytes


class MessageSignature(_Message):
    """A signature over a statement's bytes."""

    message_digest: MessageDigest
    signature: Bytes


class EnvelopeSignature(_Message):
    """A signature over the envelope's PAE."""

    sig: Bytes


class Envelope(_Message):
    """A DSSE envelope with one signature."""

    payload: Bytes
    payload_type: str
    signatures: Annotated[tuple[EnvelopeSignature, ...], Field(min_length=1, max_length=1)]


class SignatureBundle(_Message):
    """A bundle over a statement (`message_signature`) or an artifact (`dsse_envelope`)."""

    media_type: Literal["application/vnd.dev.sigstore.bundle.v0.3+json"]
    verification_material: Material
    message_signature: MessageSignature | None = None
    dsse_envelope: Envelope | None = None

    @property
    def entry(self) -> LogEntry:
        """The one log entry."""
        return self.verification_material.tlog_entries[0]

    @property
    def token(self) -> bytes:
        """The one time-stamp."""
        return self.verification_material.timestamp_verification_data.rfc3161_timestamps[0].signed_timestamp

    @property
    def signature(self) -> bytes:
        """The signature's bytes, of either content."""
        if self.message_signature is not None:
            return self.message_signature.signature
        return self.dsse_envelope.signatures[0].sig if self.dsse_envelope is not None else b""


def read(data: bytes) -> SignatureBundle:
    """Parse a bundle strictly.

    Raises:
        TrustError: TRUST_BUNDLE_ENCODING (not canonical: two readers could read two things), TRUST_BUNDLE_VERSION,
            TRUST_BUNDLE_LIMIT, TRUST_BUNDLE_INCOMPLETE, TRUST_BUNDLE_SURPLUS, TRUST_BUNDLE_MALFORMED.
    """
    try:
        document = documents.read_canonical_json(data, what="signature bundle", max_bytes=MAX_BYTES)
    except DocumentError as error:
        code = "TRUST_BUNDLE_LIMIT" if error.code == "DOCUMENT_TOO_LARGE" else "TRUST_BUNDLE_ENCODING"
        raise TrustError(code, error.cause, **error.evidence) from None
    version = document.get("mediaType") if isinstance(document, dict) else None
    if isinstance(version, str) and version != BUNDLE_MEDIA_TYPE:
        raise TrustError(
            "TRUST_BUNDLE_VERSION", "the signature is not a Sigstore v0.3 bundle", media_type=version[:100]
        )
    if isinstance(document, dict) and None in document.values():  # of two contents one is absent, not null
        raise TrustError("TRUST_BUNDLE_MALFORMED", "the bundle names a content without having it")
    try:
        return SignatureBundle.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]  # the others may be its consequence
        where = ".".join(str(part) for part in first["loc"]) or "document"
        code = _CODES.get(first["type"], "TRUST_BUNDLE_MALFORMED")
        raise TrustError(code, f"signature bundle: {where}: {first['msg']}", field=where) from None
