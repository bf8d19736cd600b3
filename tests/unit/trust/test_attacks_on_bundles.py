"""Attacks on the signature and the shape of its bundle: each refused with its own code, and its honest twin."""

import base64
import json

import pytest

from appliance import documents
from appliance.artifact import SIGNATURE_NAME, from_files
from appliance.errors import TrustError
from appliance.trust import keys
from appliance.trust.names import statement_type
from appliance.trust.verification import verify_artifact, verify_statement
from tests.support.forgery import edit, flipped, high_s

PAYLOAD = documents.write_json({"_type": statement_type("release"), "version": "1.2.3"})
OTHER = documents.write_json({"_type": statement_type("release"), "version": "9.9.9"})
FILES = {"router.yaml": b"name: r\n", "router.safetensors": b"weights"}


def in_bundle(path, change):
    """Edit a finished bundle at a path of keys."""

    def apply(document):
        place = document
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = change(place[path[-1]])
        return document

    return {"bundle": apply}


def without(*path):
    def apply(document):
        place = document
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]
        return document

    return {"bundle": apply}


ENTRIES = ("verificationMaterial", "tlogEntries")
ENTRY = (*ENTRIES, 0)
STAMPS = ("verificationMaterial", "timestampVerificationData", "rfc3161Timestamps")
CERTIFICATE = ("verificationMaterial", "certificate", "rawBytes")

ATTACKS = {
    # the signature itself
    "a bit of the signature is turned before logging": ("TRUST_SIGNATURE", {"signature": flipped}),
    "the signature is in its other (high S) form": ("TRUST_SIGNATURE_FORM", {"signature": high_s}),
    "the signature is empty": ("TRUST_SIGNATURE_FORM", {"signature": lambda _: b""}),
    "another key signed": ("TRUST_SIGNATURE", {"sign_with": keys.generate()}),
    "another payload was signed": ("TRUST_SIGNATURE", {"signed_bytes": lambda m: m + b" "}),
    "a zero signature": ("TRUST_SIGNATURE_FORM", {"signature": lambda _: bytes.fromhex("3006020100020100")}),
    "the signature is swapped after time-stamping": (
        "TRUST_TIMESTAMP_IMPRINT",
        in_bundle(("messageSignature", "signature"), lambda s: base64.b64encode(flipped(base64.b64decode(s))).decode()),
    ),
    "the recorded digest is another": (
        "TRUST_DIGEST",
        in_bundle(("messageSignature", "messageDigest", "digest"), lambda _: base64.b64encode(bytes(32)).decode()),
    ),
    "the recorded digest algorithm is another": (
        "TRUST_BUNDLE_MALFORMED",
        in_bundle(("messageSignature", "messageDigest", "algorithm"), lambda _: "SHA2_512"),
    ),
    "the recorded digest is left out": ("TRUST_BUNDLE_INCOMPLETE", without("messageSignature", "messageDigest")),
    # the kind of bundle
    "an older bundle version without inclusion proof rules": (
        "TRUST_BUNDLE_VERSION",
        in_bundle(("mediaType",), lambda _: "application/vnd.dev.sigstore.bundle+json;version=0.1"),
    ),
    "the alternative spelling of version 0.3": (
        "TRUST_BUNDLE_VERSION",
        in_bundle(("mediaType",), lambda _: "application/vnd.dev.sigstore.bundle+json;version=0.3"),
    ),
    "no version at all": ("TRUST_BUNDLE_INCOMPLETE", without("mediaType")),
    "the entry claims to be an envelope's": (
        "TRUST_BUNDLE_CONTENT",
        in_bundle((*ENTRY, "kindVersion", "kind"), lambda _: "dsse"),
    ),
    "the entry is of a kind nobody knows": (
        "TRUST_BUNDLE_MALFORMED",
        in_bundle((*ENTRY, "kindVersion", "kind"), lambda _: "intoto"),
    ),
    "the entry is of a newer kind version": (
        "TRUST_BUNDLE_MALFORMED",
        in_bundle((*ENTRY, "kindVersion", "version"), lambda _: "0.0.2"),
    ),
    # missing and surplus parts
    "no log entry": ("TRUST_BUNDLE_INCOMPLETE", in_bundle(ENTRIES, lambda _: [])),
    "a second log entry, of another signature": (
        "TRUST_BUNDLE_SURPLUS",
        in_bundle(ENTRIES, lambda e: [*e, {**e[0], "logIndex": "0", "canonicalizedBody": "e30="}]),
    ),
    "a promise instead of a proof": (
        "TRUST_BUNDLE_MALFORMED",
        in_bundle((*ENTRY, "inclusionProof"), lambda _: None),
    ),
    "the log entry twice": ("TRUST_BUNDLE_SURPLUS", in_bundle(ENTRIES, lambda e: e * 2)),
    "no inclusion proof": ("TRUST_BUNDLE_INCOMPLETE", without(*ENTRY, "inclusionProof")),
    "no checkpoint": ("TRUST_BUNDLE_INCOMPLETE", without(*ENTRY, "inclusionProof", "checkpoint")),
    "no inclusion promise": ("TRUST_BUNDLE_INCOMPLETE", without(*ENTRY, "inclusionPromise")),
    "no integrated time": ("TRUST_BUNDLE_INCOMPLETE", without(*ENTRY, "integratedTime")),
    "no time-stamp": ("TRUST_BUNDLE_INCOMPLETE", in_bundle(STAMPS, lambda _: [])),
    "no time-stamp data": ("TRUST_BUNDLE_INCOMPLETE", without("verificationMaterial", "timestampVerificationData")),
    "the time-stamp twice": ("TRUST_BUNDLE_SURPLUS", in_bundle(STAMPS, lambda s: s * 2)),
    "no certificate": ("TRUST_BUNDLE_INCOMPLETE", without("verificationMaterial", "certificate")),
    "a chain instead of a certificate": (
        "TRUST_BUNDLE_INCOMPLETE",
        in_bundle(
            ("verificationMaterial",),
            lambda m: {
                **{k: v for k, v in m.items() if k != "certificate"},
                "x509CertificateChain": {"certificates": [m["certificate"]]},
            },
        ),
    ),
    "a bare public key hint beside the certificate": (
        "TRUST_BUNDLE_SURPLUS",
        in_bundle(("verificationMaterial",), lambda m: {**m, "publicKey": {"hint": "x"}}),
    ),
    "an unknown field": ("TRUST_BUNDLE_SURPLUS", {"bundle": lambda d: {**d, "note": "trust me"}}),
    "a second content": (
        "TRUST_BUNDLE_CONTENT",
        {
            "bundle": lambda d: {
                **d,
                "dsseEnvelope": {"payload": "", "payloadType": "", "signatures": [{"sig": "AA=="}]},
            }
        },
    ),
    "a second content that is null": ("TRUST_BUNDLE_MALFORMED", {"bundle": lambda d: {**d, "dsseEnvelope": None}}),
    "no content": ("TRUST_BUNDLE_CONTENT", without("messageSignature")),
    # encodings
    "a key twice, the second hidden from some readers": (
        "TRUST_BUNDLE_ENCODING",
        {"raw": lambda r: b'{"mediaType":"x",' + r[1:]},
    ),
    "a key that is half a surrogate pair": (
        "TRUST_BUNDLE_ENCODING",
        {"raw": lambda r: r.replace(b'{"mediaType"', b'{"\\ud800":1,"mediaType"')},
    ),
    "white space at the end": ("TRUST_BUNDLE_ENCODING", {"raw": lambda r: r + b" "}),
    "keys in another order": (
        "TRUST_BUNDLE_ENCODING",
        {"raw": lambda r: json.dumps(dict(reversed(json.loads(r).items())), separators=(",", ":")).encode() + b"\n"},
    ),
    "base64 with loose last bits": (
        "TRUST_BUNDLE_ENCODING",
        in_bundle(("messageSignature", "messageDigest", "digest"), lambda s: s[:-2] + chr(ord(s[-2]) + 1) + "="),
    ),
    "base64 in the other alphabet": (
        "TRUST_BUNDLE_ENCODING",
        in_bundle(CERTIFICATE, lambda s: s.replace("+", "-").replace("/", "_")),
    ),
    "base64 without its padding": (
        "TRUST_BUNDLE_ENCODING",
        in_bundle(("messageSignature", "messageDigest", "digest"), lambda s: s.rstrip("=")),
    ),
    "an index beyond 64 bits": ("TRUST_BUNDLE_MALFORMED", in_bundle((*ENTRY, "logIndex"), lambda _: str(2**63))),
    "a weaker hash named beside the digest": (
        "TRUST_BUNDLE_MALFORMED",
        in_bundle(("messageSignature", "messageDigest", "algorithm"), lambda _: "HASH_ALGORITHM_UNSPECIFIED"),
    ),
    "base64 with a line break": ("TRUST_BUNDLE_ENCODING", in_bundle(CERTIFICATE, lambda s: s[:64] + "\n" + s[64:])),
    "a number with a leading zero": ("TRUST_BUNDLE_ENCODING", in_bundle((*ENTRY, "logIndex"), lambda s: "0" + s)),
    "a number in another script": ("TRUST_BUNDLE_ENCODING", in_bundle((*ENTRY, "logIndex"), lambda _: "\u0663")),
    "a negative number": ("TRUST_BUNDLE_ENCODING", in_bundle((*ENTRY, "logIndex"), lambda _: "-3")),
    "a number of a thousand digits": ("TRUST_BUNDLE_ENCODING", in_bundle((*ENTRY, "logIndex"), lambda _: "9" * 1000)),
    "a number instead of its text": ("TRUST_BUNDLE_ENCODING", in_bundle((*ENTRY, "logIndex"), lambda _: 3)),
    "a thousand proof hashes": (
        "TRUST_BUNDLE_SURPLUS",
        in_bundle((*ENTRY, "inclusionProof", "hashes"), lambda h: h * 1000),
    ),
    "not JSON": ("TRUST_BUNDLE_ENCODING", {"raw": lambda _: b"-----BEGIN PGP SIGNATURE-----"}),
    "nothing": ("TRUST_BUNDLE_ENCODING", {"raw": lambda _: b""}),
    "half of it": ("TRUST_BUNDLE_ENCODING", {"raw": lambda r: r[: len(r) // 2]}),
    "a list": ("TRUST_BUNDLE_MALFORMED", {"raw": lambda r: b"[" + r.strip() + b"]\n"}),
    "a byte order mark": ("TRUST_BUNDLE_ENCODING", {"raw": lambda r: b"\xef\xbb\xbf" + r}),
    "nested without end": (
        "TRUST_BUNDLE_LIMIT",
        {"raw": lambda _: b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"\n"},
    ),
    "a gigantic bundle": ("TRUST_BUNDLE_LIMIT", {"raw": lambda r: r + b" " * 300_000}),
}


def forge(name, forger):
    """The bundle of an attack."""
    return forger.statement(PAYLOAD, **ATTACKS[name][1])


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_the_bundle_is_refused_with_its_code(name, forger, zone, now):
    with pytest.raises(TrustError) as refused:
        verify_statement(PAYLOAD, forge(name, forger), kind="release", material=zone.material, at=now)
    assert refused.value.code == ATTACKS[name][0], refused.value


def test_the_honest_twin_of_every_attack_is_accepted(forger, zone, now):
    verdict = verify_statement(PAYLOAD, forger.statement(PAYLOAD), kind="release", material=zone.material, at=now)
    assert (verdict.role, verdict.kind, verdict.signed_at) == ("release-signer", "release", now)


def test_what_our_own_signer_writes_is_accepted_every_time(zone, now):
    signer = zone.signer("release-signer", at=now)
    for _ in range(20):  # half of all ECDSA signatures have a high S: a signer that forgot it would fail here
        verify_statement(PAYLOAD, signer.sign_statement(PAYLOAD), kind="release", material=zone.material, at=now)


def test_an_artifacts_bundle_that_names_the_other_content_as_null_is_refused(zone, now):
    def judge(bundle):
        return verify_artifact(from_files({**FILES, SIGNATURE_NAME: bundle}), material=zone.material, at=now)

    bundle = zone.signer("producer", at=now).sign_artifact(FILES)
    assert judge(bundle).role == "producer"
    with pytest.raises(TrustError) as refused:
        judge(edit(bundle, lambda document: document.update(messageSignature=None)))
    assert refused.value.code == "TRUST_BUNDLE_MALFORMED"


def test_another_payload_beside_an_honest_signature_is_refused(forger, zone, now):
    with pytest.raises(TrustError) as refused:
        verify_statement(OTHER, forger.statement(PAYLOAD), kind="release", material=zone.material, at=now)
    assert refused.value.code == "TRUST_DIGEST"


def test_another_payload_with_the_recorded_digest_adjusted_is_refused(forger, zone, now):
    def adjust(document):
        import hashlib

        digest = base64.b64encode(hashlib.sha256(OTHER).digest()).decode()
        document["messageSignature"]["messageDigest"]["digest"] = digest

    with pytest.raises(TrustError) as refused:
        verify_statement(OTHER, edit(forger.statement(PAYLOAD), adjust), kind="release", material=zone.material, at=now)
    assert refused.value.code == "TRUST_SIGNATURE"


def test_a_statement_signature_does_not_pass_for_an_artifacts(forger, zone, now):
    artifact = from_files({**FILES, "artifact.sigstore.json": forger.statement(PAYLOAD)})
    with pytest.raises(TrustError) as refused:
        verify_artifact(artifact, material=zone.material, at=now)
    assert refused.value.code == "TRUST_BUNDLE_CONTENT"


def test_an_artifact_signature_does_not_pass_for_a_statements(forger, zone, now):
    with pytest.raises(TrustError) as refused:
        verify_statement(PAYLOAD, forger.artifact(FILES), kind="release", material=zone.material, at=now)
    assert refused.value.code == "TRUST_BUNDLE_CONTENT"


def test_sigstore_has_the_last_word_when_our_own_checks_would_accept(forger, zone, now, monkeypatch):
    """Blind our SCT check: the stock verifier still refuses a certificate that no trusted log has seen."""
    from dataclasses import replace

    from appliance.trust import leaf

    bundle = forger.statement(PAYLOAD, leaf=replace(forger.plan.leaf, sct_over=lambda tbs: tbs + b"x"))
    ours = leaf._check_sct

    def blind(*arguments):
        return next(iter(arguments[-1].certificate_logs.values())), now

    assert ours is not blind
    monkeypatch.setattr(leaf, "_check_sct", blind)
    with pytest.raises(TrustError) as refused:
        verify_statement(PAYLOAD, bundle, kind="release", material=zone.material, at=now)
    assert refused.value.code == "TRUST_SIGSTORE"
