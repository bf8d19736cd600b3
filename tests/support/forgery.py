"""A forger with an insider's means: every link of a signature can be bent while all the others stay right.

The forger holds the authority's keys, so an attack in the suite is refused for the one thing that is wrong with it
and not because the rest was never valid.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from appliance import documents
from appliance.trust import checkpoint, keys, merkle, oms, timestamping
from appliance.trust.authority import Authority
from appliance.trust.encoding import b64, canonical_json
from appliance.trust.names import BUNDLE_MEDIA_TYPE, IN_TOTO_PAYLOAD_TYPE, ISSUER, OIDC_ISSUER_V1, OIDC_ISSUER_V2

SCT_LIST = ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
Change = Callable[[Any], Any]


def unchanged(value: Any) -> Any:
    """The honest link."""
    return value


@dataclass(frozen=True)
class LeafPlan:
    """How the signing certificate is made."""

    identity: str = "release-signer@appliance.internal"
    names: Sequence[x509.GeneralName] | None = None
    san_critical: bool = True
    subject: x509.Name = field(default_factory=lambda: x509.Name([]))
    usages: Sequence[ObjectIdentifier] = (ExtendedKeyUsageOID.CODE_SIGNING,)
    key_usage: dict[str, bool] = field(default_factory=dict)
    issuer_v1: str = ISSUER
    issuer_v2: bytes | None = None
    extra: Sequence[tuple[x509.ExtensionType, bool]] = ()
    starts: timedelta = timedelta()
    lifetime: timedelta = timedelta(minutes=10)
    scts: int = 1
    sct_key: ec.EllipticCurvePrivateKey | None = None
    sct_at: datetime | int | None = None  # or milliseconds that no calendar holds
    sct_over: Change = unchanged
    issuer: x509.Certificate | None = None
    issuer_key: Any = None
    key: Any = None
    der: Change = unchanged


@dataclass(frozen=True)
class Plan:
    """How a bundle is made; every field is the honest choice unless an attack changes it."""

    at: datetime
    leaf: LeafPlan = LeafPlan()
    sign_with: Any = None
    signed_bytes: Change = unchanged
    signature: Change = unchanged
    body: Change = unchanged
    body_bytes: Change = unchanged
    integrated: timedelta = timedelta()
    promise_key: Any = None
    promise: Change = unchanged
    log_key: Any = None
    log_url: str | None = None
    log_id_key: Any = None
    tree: Change = unchanged
    checkpoint: Change = unchanged
    entry: Change = unchanged
    stamped: Change = unchanged
    stamp_at: timedelta = timedelta()
    stamp_key: Any = None
    stamp_certificate: x509.Certificate | None = None
    token: Change = unchanged
    envelope_type: str = IN_TOTO_PAYLOAD_TYPE
    statement: Change = unchanged
    bundle: Change = unchanged
    raw: Change = unchanged


class Forger:
    """Makes bundles from plans with the keys of an authority."""

    def __init__(self, path: Path, at: datetime) -> None:
        self.authority = Authority.open(path)
        self.at = at.astimezone(UTC).replace(microsecond=0)
        self.plan = Plan(self.at)

    def key(self, service: str) -> ec.EllipticCurvePrivateKey:
        """A service's key."""
        return self.authority.keys.load(f"{service}-1")

    def statement(self, payload: bytes, **changes: Any) -> bytes:
        """A bundle over a statement."""
        return self._make(replace(self.plan, **changes), payload, None)

    def artifact(self, files: dict[str, bytes], **changes: Any) -> bytes:
        """A bundle over an artifact's files."""
        plan = replace(self.plan, **changes)
        leaf = plan.leaf if "leaf" in changes else replace(plan.leaf, identity="import-officer@appliance.internal")
        plan = replace(plan, leaf=leaf)
        return self._make(plan, b"", plan.statement(oms.payload(files)))

    def certificate(self, plan: LeafPlan, key: Any) -> x509.Certificate:
        """A signing certificate."""
        issuer = plan.issuer or self.authority.certificate("signing-1")
        issuer_key = plan.issuer_key or self.key("signing")
        usage = {
            "digital_signature": True, "content_commitment": False, "key_encipherment": False,
            "data_encipherment": False, "key_agreement": False, "key_cert_sign": False, "crl_sign": False,
            "encipher_only": False, "decipher_only": False, **plan.key_usage,
        }  # fmt: skip
        start = self.at + plan.starts
        builder = (
            x509.CertificateBuilder()
            .subject_name(plan.subject)
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(start + plan.lifetime)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.ExtendedKeyUsage(list(plan.usages)), critical=False)
        )
        names = [x509.RFC822Name(plan.identity)] if plan.names is None else list(plan.names)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=plan.san_critical)
        v1 = plan.issuer_v1.encode()
        v2 = asn1.encode_der(plan.issuer_v1) if plan.issuer_v2 is None else plan.issuer_v2
        builder = builder.add_extension(x509.UnrecognizedExtension(OIDC_ISSUER_V1, v1), critical=False)
        builder = builder.add_extension(x509.UnrecognizedExtension(OIDC_ISSUER_V2, v2), critical=False)
        for extension, critical in plan.extra:
            builder = builder.add_extension(extension, critical=critical)
        tbs = builder.sign(issuer_key, hashes.SHA256()).tbs_certificate_bytes
        if plan.scts:
            sct = self._sct(plan, plan.sct_over(tbs), issuer)
            listed = (struct.pack("!H", len(sct)) + sct) * plan.scts
            value = asn1.encode_der(struct.pack("!H", len(listed)) + listed)
            builder = builder.add_extension(x509.UnrecognizedExtension(SCT_LIST, value), critical=False)
        while True:
            certificate = builder.sign(issuer_key, hashes.SHA256())
            if keys.is_canonical(certificate.signature):
                return certificate

    def _sct(self, plan: LeafPlan, tbs: bytes, issuer: x509.Certificate) -> bytes:
        key = plan.sct_key or self.key("ct")
        at = self.at if plan.sct_at is None else plan.sct_at
        milliseconds = at if isinstance(at, int) else int(at.timestamp() * 1000)
        entry = keys.key_id(issuer.public_key()) + struct.pack("!I", len(tbs))[1:] + tbs
        signature = keys.sign(key, struct.pack("!BBQH", 0, 0, milliseconds, 1) + entry + b"\x00\x00")
        head = struct.pack("!B32sQH", 0, keys.key_id(key.public_key()), milliseconds, 0)
        return head + b"\x04\x03" + struct.pack("!H", len(signature)) + signature

    def _make(self, plan: Plan, payload: bytes, artifact: bytes | None) -> bytes:
        key = plan.leaf.key or keys.generate()
        certificate = self.certificate(plan.leaf, key)
        kind = IN_TOTO_PAYLOAD_TYPE if artifact is None else plan.envelope_type
        message = payload
        if artifact is not None:
            message = b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(artifact), artifact)
        message = plan.signed_bytes(message)
        signer = plan.sign_with or key
        if isinstance(signer, ec.EllipticCurvePrivateKey):
            signature = keys.sign(signer, message)
        else:
            from cryptography.hazmat.primitives.asymmetric import padding

            signature = signer.sign(message, padding.PKCS1v15(), hashes.SHA256())
        signature = plan.signature(signature)
        pem = b64(certificate.public_bytes(Encoding.PEM))
        if artifact is None:
            digest = hashlib.sha256(payload)
            content: dict[str, Any] = {
                "messageSignature": {
                    "messageDigest": {"algorithm": "SHA2_256", "digest": b64(digest.digest())},
                    "signature": b64(signature),
                }
            }
            spec: dict[str, Any] = {
                "data": {"hash": {"algorithm": "sha256", "value": digest.hexdigest()}},
                "signature": {"content": b64(signature), "publicKey": {"content": pem}},
            }
        else:
            envelope = {"payload": b64(artifact), "payloadType": kind, "signatures": [{"sig": b64(signature)}]}
            content = {"dsseEnvelope": envelope}
            spec = {
                "envelopeHash": {
                    "algorithm": "sha256",
                    "value": hashlib.sha256(canonical_json(envelope)).hexdigest(),
                },
                "payloadHash": {"algorithm": "sha256", "value": hashlib.sha256(artifact).hexdigest()},
                "signatures": [{"signature": b64(signature), "verifier": pem}],
            }
        body = {"apiVersion": "0.0.1", "kind": "hashedrekord" if artifact is None else "dsse", "spec": spec}
        entry = self._entry(plan, body["kind"], plan.body_bytes(canonical_json(plan.body(body))))
        stamp_certificate = plan.stamp_certificate or self.authority.certificate("tsa-1")
        token = timestamping.issue(
            plan.stamp_key or self.key("tsa"),
            stamp_certificate,
            plan.stamped(signature),
            at=plan.at + plan.stamp_at,
            serial=secrets.randbits(128) | 1 << 127,
        )
        document = {
            "mediaType": BUNDLE_MEDIA_TYPE,
            "verificationMaterial": {
                "certificate": {"rawBytes": b64(plan.leaf.der(certificate.public_bytes(Encoding.DER)))},
                "tlogEntries": [plan.entry(entry)],
                "timestampVerificationData": {"rfc3161Timestamps": [{"signedTimestamp": b64(plan.token(token))}]},
            },
            **content,
        }
        return plan.raw(documents.write_json(plan.bundle(document)))

    def _entry(self, plan: Plan, kind: str, body: bytes) -> dict[str, Any]:
        key = plan.log_key or self.key("log")
        url = plan.log_url or next(iter(self.authority.anchors().logs.values())).url
        leaves = [merkle.leaf_hash(b"filler %d" % n) for n in range(5)]
        leaves.insert(3, merkle.leaf_hash(body))
        leaves = plan.tree(leaves)
        root = merkle.root(leaves)
        note = checkpoint.write(key, origin=url, size=len(leaves), root=root)
        log_id = keys.key_id((plan.log_id_key or key).public_key())
        integrated = int((plan.at + plan.integrated).timestamp())
        promise = {"body": b64(body), "integratedTime": integrated, "logID": log_id.hex(), "logIndex": 3}
        signed = keys.sign(plan.promise_key or key, canonical_json(plan.promise(promise)))
        return {
            "logIndex": "3",
            "logId": {"keyId": b64(log_id)},
            "kindVersion": {"kind": kind, "version": "0.0.1"},
            "integratedTime": str(integrated),
            "inclusionPromise": {"signedEntryTimestamp": b64(signed)},
            "inclusionProof": {
                "logIndex": "3",
                "rootHash": b64(root),
                "treeSize": str(len(leaves)),
                "hashes": [b64(each) for each in merkle.inclusion_proof(leaves, 3)],
                "checkpoint": {"envelope": plan.checkpoint(note)},
            },
            "canonicalizedBody": b64(body),
        }


def high_s(signature: bytes) -> bytes:
    """The other valid form of an ECDSA signature."""
    r, s = decode_dss_signature(signature)
    return encode_dss_signature(r, keys.P256_ORDER - s)


def flipped(data: bytes, position: int = -1) -> bytes:
    """One bit turned."""
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


def edit(document: bytes, change: Callable[[Any], Any]) -> bytes:
    """Change a canonical JSON document."""
    value = json.loads(document)
    result = change(value)
    return documents.write_json(value if result is None else result)


def rebase64(text: str, change: Callable[[bytes], bytes]) -> str:
    """Change bytes that stand in a document as base64."""
    return b64(change(base64.b64decode(text)))
