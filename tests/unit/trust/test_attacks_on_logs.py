"""Attacks on the transparency log's proofs and on the time-stamp."""

import base64
import json
from datetime import timedelta

import pytest
from rfc3161_client import decode_timestamp_response

from appliance import documents
from appliance.errors import TrustError
from appliance.trust import checkpoint, keys, merkle, timestamping
from appliance.trust.encoding import b64
from appliance.trust.names import statement_type
from appliance.trust.verification import verify_statement
from tests.support.forgery import flipped, high_s

PAYLOAD = documents.write_json({"_type": statement_type("release"), "version": "1.2.3"})


def in_entry(*path, change):
    def apply(entry):
        place = entry
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = change(place[path[-1]])
        return entry

    return {"entry": apply}


def bits(text):
    return b64(flipped(base64.b64decode(text)))


def note(change):
    """Change the text of the checkpoint; its signature stays."""
    return {"checkpoint": change}


def signed_note(forger, key="log", **changes):
    """A checkpoint that is signed anew over changed content."""

    def make(text):
        head = checkpoint.read(text)
        fields = {"origin": head.origin, "size": head.size, "root": head.root, **changes}
        return checkpoint.write(forger.key(key), **fields)

    return {"checkpoint": make}


def other_token(forger):
    """An honest token, but of another authority."""
    key = keys.generate()
    from appliance.trust import certificates

    root = certificates.root_certificate(key, "tsa root", at=forger.at - timedelta(days=1), lifetime=timedelta(days=9))
    stamp_key = keys.generate()
    certificate = certificates.end_entity_certificate(
        stamp_key.public_key(), "tsa", [certificates.Usage.TIME_STAMPING], [], certificates.Issuer(root, key),
        at=forger.at - timedelta(days=1), lifetime=timedelta(days=8),
    )  # fmt: skip
    return {"stamp_key": stamp_key, "stamp_certificate": certificate}


def last_signature(forger, change):
    """Change the ECDSA signature at the end of a token, and every length above it with it."""
    certificate = forger.authority.certificate("tsa-1")

    def apply(token):
        found = decode_timestamp_response(token).tst_info
        info = timestamping._tst_info(found.message_imprint.message, found.gen_time, found.serial_number)
        fixed = timestamping._fixed_parts(certificate)
        attributes = timestamping._signed_attributes(info, fixed)
        signature = next(token[-n:] for n in range(64, 73) if keys.is_canonical(token[-n:]))
        assert timestamping._response(info, fixed, attributes, signature) == token
        return timestamping._response(info, fixed, attributes, change(signature))

    return {"token": apply}


def with_status(status):
    """Change the PKIStatus of the response (0 is granted)."""
    return {"token": lambda t: t.replace(b"\x30\x03\x02\x01\x00", b"\x30\x03\x02\x01" + bytes([status]), 1)}


ATTACKS = {
    # which log
    "a log that nobody trusts": ("TRUST_LOG_UNKNOWN", {"log_key": keys.generate()}),
    "the certificate log instead": ("TRUST_LOG_UNKNOWN", lambda f: {"log_key": f.key("ct")}),
    "a trusted log's id over another's proofs": (
        "TRUST_LOG_SIGNATURE",
        lambda f: {"log_key": keys.generate(), "log_id_key": f.key("log")},
    ),
    # the checkpoint
    "a checkpoint of another origin": ("TRUST_LOG_ORIGIN", {"log_url": "https://log-9.appliance.internal"}),
    "a checkpoint with its size edited": ("TRUST_LOG_SIGNATURE", note(lambda t: t.replace("\n6\n", "\n7\n"))),
    "a checkpoint without signature": ("TRUST_LOG_CHECKPOINT", note(lambda t: t.split("\n\n")[0] + "\n\n")),
    "a checkpoint with a second signature": ("TRUST_LOG_CHECKPOINT", note(lambda t: t + t.split("\n\n")[1])),
    "a checkpoint with words after it": ("TRUST_LOG_CHECKPOINT", note(lambda t: t + "trust me\n")),
    "a checkpoint with another line in it": (
        "TRUST_LOG_CHECKPOINT",
        note(lambda t: t.replace("\n\n", "\nTimestamp: 1\n\n")),
    ),
    "a checkpoint in Windows lines": ("TRUST_LOG_CHECKPOINT", note(lambda t: t.replace("\n", "\r\n"))),
    "a checkpoint signed under another name": (
        "TRUST_LOG_CHECKPOINT",
        note(lambda t: t.replace("\u2014 https://log-1", "\u2014 https://log-2")),
    ),
    "a checkpoint with a wrong signature": (
        "TRUST_LOG_SIGNATURE",
        note(lambda t: t[: t.rindex(" ") + 1] + b64(flipped(base64.b64decode(t.split(" ")[-1]))) + "\n"),
    ),
    "a checkpoint with a high S signature": (
        "TRUST_LOG_SIGNATURE",
        note(
            lambda t: (
                t[: t.rindex(" ") + 1] + b64((blob := base64.b64decode(t.split(" ")[-1]))[:4] + high_s(blob[4:])) + "\n"
            )
        ),
    ),
    "a checkpoint of a smaller tree": ("TRUST_LOG_TREE", lambda f: signed_note(f, size=5)),
    "a checkpoint of another tree": ("TRUST_LOG_TREE", lambda f: signed_note(f, root=bytes(32))),
    "an empty checkpoint": ("TRUST_LOG_CHECKPOINT", note(lambda _: "")),
    # the inclusion proof
    "a proof with a bit turned": (
        "TRUST_LOG_PROOF",
        in_entry("inclusionProof", "hashes", change=lambda h: [bits(h[0]), *h[1:]]),
    ),
    "a proof that is too short": ("TRUST_LOG_PROOF", in_entry("inclusionProof", "hashes", change=lambda h: h[:-1])),
    "a proof that is too long": (
        "TRUST_LOG_PROOF",
        in_entry("inclusionProof", "hashes", change=lambda h: [*h, b64(bytes(32))]),
    ),
    "no proof": ("TRUST_LOG_PROOF", in_entry("inclusionProof", "hashes", change=lambda _: [])),
    "a proof in another order": ("TRUST_LOG_PROOF", in_entry("inclusionProof", "hashes", change=lambda h: h[::-1])),
    "a proof of another index": ("TRUST_LOG_PROOF", in_entry("inclusionProof", "logIndex", change=lambda _: "2")),
    "a proof of an index outside of the tree": (
        "TRUST_LOG_PROOF",
        lambda f: {"entry": lambda e: _reindexed(e, "6")},
    ),
    "another index claimed and proven": ("TRUST_LOG_PROOF", {"entry": lambda e: _reindexed(e, "2")}),
    "a root that the checkpoint does not name": (
        "TRUST_LOG_TREE",
        in_entry("inclusionProof", "rootHash", change=bits),
    ),
    "a tree size that the checkpoint does not name": (
        "TRUST_LOG_TREE",
        in_entry("inclusionProof", "treeSize", change=lambda _: "7"),
    ),
    "a tree that never held the entry": (
        "TRUST_LOG_PROOF",
        {"tree": lambda leaves: [*leaves[:3], merkle.leaf_hash(b"other"), *leaves[4:]]},
    ),
    "an inner node passed off as a leaf": (
        "TRUST_LOG_PROOF",
        {"tree": lambda leaves: [*leaves[:3], merkle.node_hash(leaves[3], leaves[3]), *leaves[4:]]},
    ),
    # the promise
    "a promise by another key": ("TRUST_LOG_PROMISE", {"promise_key": keys.generate()}),
    "a promise by the certificate log": ("TRUST_LOG_PROMISE", lambda f: {"promise_key": f.key("ct")}),
    "a promise of another time": (
        "TRUST_LOG_PROMISE",
        {"promise": lambda p: {**p, "integratedTime": p["integratedTime"] + 1}},
    ),
    "a promise of another entry": ("TRUST_LOG_PROMISE", {"promise": lambda p: {**p, "logIndex": 4}}),
    "a promise with a bit turned": (
        "TRUST_LOG_PROMISE",
        in_entry("inclusionPromise", "signedEntryTimestamp", change=bits),
    ),
    "a time out of every calendar": (
        "TRUST_LOG_TIME",
        in_entry("integratedTime", change=lambda _: str(2**62)),
    ),
    # what was logged
    "an entry about another digest": (
        "TRUST_LOG_BODY",
        {"body": lambda b: _edit(b, ("spec", "data", "hash", "value"), "0" * 64)},
    ),
    "an entry about another signature": (
        "TRUST_LOG_BODY",
        {"body": lambda b: _edit(b, ("spec", "signature", "content"), "AAAA")},
    ),
    "an entry about another key": (
        "TRUST_LOG_BODY",
        {"body": lambda b: _edit(b, ("spec", "signature", "publicKey", "content"), "AAAA")},
    ),
    "an entry with a surplus field": ("TRUST_LOG_BODY", {"body": lambda b: {**b, "extra": 1}}),
    "an entry with loose spacing": (
        "TRUST_LOG_BODY",
        {"body_bytes": lambda b: json.dumps(json.loads(b), indent=1).encode()},
    ),
    "an entry that is no JSON": ("TRUST_LOG_BODY", {"body_bytes": lambda _: b"entry"}),
    # the time-stamp
    "a time-stamp of a foreign authority": ("TRUST_TIMESTAMP_AUTHORITY", other_token),
    "a time-stamp by the TLS authority": (
        "TRUST_TIMESTAMP_AUTHORITY",
        lambda f: {"stamp_key": f.key("tls"), "stamp_certificate": f.authority.certificate("tls-1")},
    ),
    "a time-stamp under the right name by another key": ("TRUST_TIMESTAMP", {"stamp_key": keys.generate()}),
    "a time-stamp of another signature": ("TRUST_TIMESTAMP_IMPRINT", {"stamped": flipped}),
    "a time-stamp with its signature's last bit turned": ("TRUST_TIMESTAMP", lambda f: last_signature(f, flipped)),
    "a time-stamp with its time edited": (
        "TRUST_TIMESTAMP_FORM",
        {"token": lambda t: t.replace(b"20261111120000Z", b"20261111120100Z")},
    ),
    "a time-stamp with a high S signature": ("TRUST_TIMESTAMP_FORM", lambda f: last_signature(f, high_s)),
    "a time-stamp with a byte after it": ("TRUST_TIMESTAMP_FORM", {"token": lambda t: t + b"\x00"}),
    "a time-stamp that was rejected": ("TRUST_TIMESTAMP_FORM", with_status(2)),
    "a time-stamp granted with changes": ("TRUST_TIMESTAMP_FORM", with_status(1)),
    "half a time-stamp": ("TRUST_TIMESTAMP_FORM", {"token": lambda t: t[: len(t) // 2]}),
    "an empty time-stamp": ("TRUST_TIMESTAMP_FORM", {"token": lambda _: b""}),
}


def _reindexed(entry, index):
    entry["logIndex"] = entry["inclusionProof"]["logIndex"] = index
    return entry


def _edit(body, path, value):
    place = body
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return body


def forge(name, forger):
    """The bundle of an attack."""
    changes = ATTACKS[name][1]
    return forger.statement(PAYLOAD, **(changes(forger) if callable(changes) else changes))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_the_proofs_is_refused_with_its_code(name, forger, zone, now):
    with pytest.raises(TrustError) as caught:
        verify_statement(PAYLOAD, forge(name, forger), kind="release", material=zone.material, at=now)
    assert caught.value.code == ATTACKS[name][0], caught.value


def test_an_entry_anywhere_in_an_honest_log_is_accepted(zone, now):
    signer = zone.signer("release-signer", at=now)
    for _ in range(9):
        bundle = signer.sign_statement(PAYLOAD)
        verify_statement(PAYLOAD, bundle, kind="release", material=zone.material, at=now)


def test_an_entry_of_the_very_first_tree_stays_valid_after_the_log_has_grown(forger, zone, now):
    early = forger.statement(PAYLOAD, tree=lambda leaves: leaves[:4])
    verify_statement(PAYLOAD, early, kind="release", material=zone.material, at=now)
