"""The Merkle log: proofs against RFC 6962, persistence, and what an auditor finds out."""

import base64
import hashlib
import json
import shutil
import subprocess
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance import documents
from appliance.errors import TrustError
from appliance.trust import audit, ceremony, checkpoint, keys, merkle
from appliance.trust.authority import Authority
from appliance.trust.log import MerkleLog
from appliance.trust.names import statement_type
from appliance.trust.repository import TRUSTED_ROOT, Repository
from appliance.trust.signing import open_signer

PAYLOAD = documents.write_json({"_type": statement_type("release")})

# the test vectors of RFC 6962 implementations (certificate-transparency-go, merkle/testonly)
ENTRIES = [bytes.fromhex(each) for each in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def refused(code, call, *args, **kwargs):
    with pytest.raises(TrustError) as caught:
        call(*args, **kwargs)
    assert caught.value.code == code, caught.value


def leaves(count):
    return [merkle.leaf_hash(b"entry %d" % n) for n in range(count)]


def test_the_roots_are_those_of_the_published_vectors():
    hashed = [merkle.leaf_hash(entry) for entry in ENTRIES]
    assert [merkle.root(hashed[: n + 1]).hex() for n in range(8)] == ROOTS
    assert merkle.root([]) == hashlib.sha256().digest()


@given(st.integers(1, 70), st.data())
@settings(max_examples=60, deadline=None)
def test_every_inclusion_proof_holds_for_its_leaf_alone(size, data):
    index = data.draw(st.integers(0, size - 1))
    tree = leaves(size)
    proof, root = merkle.inclusion_proof(tree, index), merkle.root(tree)
    merkle.verify_inclusion(tree[index], index, size, proof, root)
    for wrong in {index ^ 1, index + 1, size} - {index}:
        refused("TRUST_LOG_PROOF", merkle.verify_inclusion, tree[index], wrong, size, proof, root)
    refused("TRUST_LOG_PROOF", merkle.verify_inclusion, merkle.leaf_hash(b"x"), index, size, proof, root)
    refused("TRUST_LOG_PROOF", merkle.verify_inclusion, tree[index], index, size, [*proof, root], root)


@given(st.integers(1, 70), st.data())
@settings(max_examples=60, deadline=None)
def test_every_consistency_proof_holds_for_its_sizes_alone(size, data):
    old = data.draw(st.integers(1, size))
    tree = leaves(size)
    proof, before, after = merkle.consistency_proof(tree, old), merkle.root(tree[:old]), merkle.root(tree)
    merkle.verify_consistency(old, before, size, after, proof)
    refused("TRUST_LOG_INCONSISTENT", merkle.verify_consistency, old, bytes(32), size, after, proof)
    refused("TRUST_LOG_INCONSISTENT", merkle.verify_consistency, old, before, size, bytes(32), proof)
    refused("TRUST_LOG_INCONSISTENT", merkle.verify_consistency, old, before, size, after, [*proof, bytes(32)])
    if old < size:
        rewritten = [merkle.leaf_hash(b"x"), *tree[1:]]
        other = merkle.consistency_proof(rewritten, old)
        refused("TRUST_LOG_INCONSISTENT", merkle.verify_consistency, old, before, size, merkle.root(rewritten), other)


def test_proofs_outside_of_the_tree_are_not_made():
    for index in (-1, 5):
        with pytest.raises(IndexError):
            merkle.inclusion_proof(leaves(5), index)
    for size in (0, 6):
        with pytest.raises(IndexError):
            merkle.consistency_proof(leaves(5), size)


@pytest.fixture
def log(tmp_path):
    return MerkleLog(tmp_path / "log", "https://log.example", keys.generate())


def test_a_log_survives_a_restart_and_only_grows(log):
    first = log.append(b"one")
    again = MerkleLog(log._directory, log.origin, log._key)
    second = again.append(b"two")
    assert (first.index, second.index, again.entries()) == (0, 1, [b"one", b"two"])


def test_half_a_line_of_a_killed_writer_is_cut_off(log):
    log.append(b"one")
    with open(log._entries, "ab") as stream:
        stream.write(b"dHd")
    assert log.entries() == [b"one"]
    assert log.append(b"three").index == 1
    assert log.entries() == [b"one", b"three"]


def test_an_entry_that_no_checkpoint_covers_yet_stays_and_is_covered_by_the_next(log):
    """The writer was killed between the entry and its checkpoint."""
    log.append(b"one")
    with open(log._entries, "ab") as stream:
        stream.write(base64.b64encode(b"two") + b"\n")
    assert log.append(b"three").index == 2
    assert log.head().size == 3


REWRITES = {
    "shortened": lambda data: data.split(b"\n")[0] + b"\n",
    "emptied": lambda data: b"",
    "changed": lambda data: data.replace(base64.b64encode(b"one"), base64.b64encode(b"eno")),
    "reordered": lambda data: b"\n".join(data.split(b"\n")[1::-1]) + b"\n" + b"\n".join(data.split(b"\n")[2:]),
    "spoilt": lambda data: b"!!!\n" + data,
}


@pytest.mark.parametrize("name", REWRITES)
def test_a_log_file_that_was(name, log):
    for entry in (b"one", b"two", b"three"):
        log.append(entry)
    log._entries.write_bytes(REWRITES[name](log._entries.read_bytes()))
    refused("TRUST_LOG_DAMAGED", log.append, b"four")


def test_a_kept_checkpoint_by_another_key_is_refused(log, tmp_path):
    log.append(b"one")
    refused("TRUST_LOG_SIGNATURE", MerkleLog(log._directory, log.origin, keys.generate()).append, b"two")


def test_fifty_writers_at_once_leave_one_line_each(log):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        indices = {each.index for each in pool.map(log.append, [b"entry %d" % n for n in range(50)])}
    assert indices == set(range(50))
    assert len(set(log.entries())) == 50


# audit


@pytest.fixture
def exported(zone, tmp_path, now):
    """An authority that has signed three things, what it exports, and its trusted root."""
    shutil.copytree(zone.path, tmp_path / "ca")
    shutil.rmtree(tmp_path / "ca/log", ignore_errors=True)
    authority = Authority.open(tmp_path / "ca")
    for role in ("release-signer", "release-signer", "import-officer"):
        open_signer(tmp_path / "ca", role, at=now).sign_statement(PAYLOAD)
    open_signer(tmp_path / "ca", "producer", at=now).sign_artifact({"router.yaml": b""})
    return authority, audit.export(authority, "log", at=now), Repository(authority).target(TRUSTED_ROOT)


def test_an_auditor_sees_every_signature_and_who_made_it(exported):
    _, data, trusted_root = exported
    found = audit.audit(data, trusted_root)
    assert found.size == 4
    assert found.signers == {
        "import-officer@appliance.internal": 1,
        "producer@appliance.internal": 1,
        "release-signer@appliance.internal": 2,
    }


def test_the_certificate_log_can_be_audited_too(exported, now):
    authority, _, trusted_root = exported
    assert audit.audit(audit.export(authority, "ct", at=now), trusted_root).size >= 4


def test_an_auditor_checks_that_a_later_export_contains_the_earlier_one(exported, now):
    authority, data, trusted_root = exported
    seen = audit.audit(data, trusted_root).checkpoint
    open_signer(authority.path, "producer", at=now).sign_statement(PAYLOAD)
    later = audit.export(authority, "log", at=now + timedelta(hours=1))
    assert audit.audit(later, trusted_root, earlier=seen).size == 5
    newest = audit.audit(later, trusted_root).checkpoint
    refused("TRUST_LOG_INCONSISTENT", audit.audit, data, trusted_root, earlier=newest)


def test_an_insider_who_rewrites_the_log_with_its_key_is_found_out_by_the_kept_checkpoint(exported, now):
    authority, data, trusted_root = exported
    seen = audit.audit(data, trusted_root).checkpoint
    document = json.loads(data)
    entries = [base64.b64decode(each) for each in document["entries"]]
    entries[1] = b'{"nothing":"happened"}'
    document["entries"] = [base64.b64encode(each).decode() for each in entries]
    key = authority.keys.load("log-1")
    root = merkle.root([merkle.leaf_hash(each) for each in entries])
    document["checkpoint"] = checkpoint.write(key, origin=document["origin"], size=len(entries), root=root)
    rewritten = documents.write_json(document)
    assert audit.audit(rewritten, trusted_root).size == 4
    refused("TRUST_LOG_INCONSISTENT", audit.audit, rewritten, trusted_root, earlier=seen)


def test_a_consistency_proof_shows_an_auditor_the_same_without_a_single_entry(exported, now):
    authority, data, trusted_root = exported
    seen = audit.audit(data, trusted_root).checkpoint
    for _ in range(3):
        open_signer(authority.path, "producer", at=now).sign_statement(PAYLOAD)
    proof = audit.prove(authority, "log", seen, at=now)
    found = audit.audit(proof, trusted_root, earlier=seen)
    assert (found.size, found.signers) == (7, None)
    assert found.root == audit.audit(audit.export(authority, "log", at=now), trusted_root).root
    assert b"entries" not in proof
    nothing_new = audit.prove(authority, "log", found.checkpoint, at=now)
    assert audit.audit(nothing_new, trusted_root, earlier=found.checkpoint).size == 7


def independent_roots(old, new, hashes):
    """The two roots that a consistency proof leads to: RFC 6962 section 2.1.2 read backwards, no line of it ours."""
    if old == new:
        return hashes[-1], hashes.pop()
    half = 1
    while half * 2 < new:
        half *= 2
    other = hashes.pop()
    if old <= half:
        before, after = independent_roots(old, half, hashes)
        return before, hashlib.sha256(b"\x01" + after + other).digest()
    before, after = independent_roots(old - half, new - half, hashes)
    return hashlib.sha256(b"\x01" + other + before).digest(), hashlib.sha256(b"\x01" + other + after).digest()


@pytest.mark.parametrize(("old", "more"), [(3, 4), (4, 3), (5, 1), (6, 7)])
def test_independent_code_and_openssl_confirm_an_exported_proof(old, more, tmp_path, zone, now):
    """What an auditor writes in an afternoon from the RFC, with `openssl` for the signatures."""
    shutil.copytree(zone.path, tmp_path / "ca")
    shutil.rmtree(tmp_path / "ca/log", ignore_errors=True)
    authority = Authority.open(tmp_path / "ca")
    log = authority.log("log", at=now)
    for number in range(old):
        log.append(b"entry %d" % number)
    seen = log.checkpoint_text()
    for number in range(more):
        log.append(b"later %d" % number)
    proof = json.loads(audit.prove(authority, "log", seen, at=now))
    roots = []
    for text in (proof["since"], proof["checkpoint"]):
        note, line = text.split("\n\n")
        origin, size, root = note.split("\n")
        assert origin == proof["origin"] == "https://log-1.appliance.internal"
        (tmp_path / "note").write_bytes(note.encode() + b"\n")
        (tmp_path / "signature").write_bytes(base64.b64decode(line.split(" ")[2])[4:])
        subprocess.run(
            ["openssl", "dgst", "-sha256", "-verify", authority.path / "certificates/log-1.pub.pem",
             "-signature", tmp_path / "signature", tmp_path / "note"],
            check=True, capture_output=True,
        )  # fmt: skip
        roots.append((int(size), base64.b64decode(root)))
    (old_size, old_root), (new_size, new_root) = roots
    assert (old_size, new_size) == (old, old + more)
    hashes = [base64.b64decode(each) for each in proof["hashes"]]
    if old & (old - 1) == 0:  # a whole subtree: the proof leaves out what the auditor has
        hashes.insert(0, old_root)
    assert independent_roots(old, old + more, hashes) == (old_root, new_root)
    assert hashes == []


CONSISTENCY = {
    "another hash": ("TRUST_LOG_INCONSISTENT", lambda d: d["hashes"].__setitem__(0, "A" * 43 + "=")),
    "a hash left out": ("TRUST_LOG_INCONSISTENT", lambda d: d["hashes"].pop()),
    "no hash": ("TRUST_LOG_INCONSISTENT", lambda d: d["hashes"].clear()),
    "its new checkpoint edited": (
        "TRUST_LOG_SIGNATURE",
        lambda d: d.update(checkpoint=d["checkpoint"].replace("\n5\n", "\n6\n")),
    ),
    "another start than the one that was kept": ("TRUST_LOG_EXPORT", lambda d: d.update(since=d["checkpoint"])),
    "no start": ("TRUST_LOG_EXPORT", lambda d: d.pop("since")),
    "another log's name": ("TRUST_LOG_UNKNOWN", lambda d: d.update(origin="https://log.example")),
}


@pytest.mark.parametrize("name", CONSISTENCY)
def test_a_consistency_proof_with(name, exported, now):
    code, change = CONSISTENCY[name]
    authority, data, trusted_root = exported
    seen = audit.audit(data, trusted_root).checkpoint
    open_signer(authority.path, "producer", at=now).sign_statement(PAYLOAD)
    document = json.loads(audit.prove(authority, "log", seen, at=now))
    change(document)
    refused(code, audit.audit, documents.write_json(document), trusted_root, earlier=seen)


def test_a_proof_says_nothing_to_an_auditor_who_kept_no_checkpoint(exported, now):
    authority, data, trusted_root = exported
    proof = audit.prove(authority, "log", audit.audit(data, trusted_root).checkpoint, at=now)
    refused("TRUST_LOG_EXPORT", audit.audit, proof, trusted_root)


def test_no_proof_is_made_of_what_the_log_does_not_contain(exported, now):
    authority, data, trusted_root = exported
    seen = checkpoint.read(audit.audit(data, trusted_root).checkpoint)
    key = authority.keys.load("log-1")
    for changes in ({"size": 9}, {"root": bytes(32)}, {"size": 3}):
        fields = {"origin": seen.origin, "size": seen.size, "root": seen.root, **changes}
        refused("TRUST_LOG_INCONSISTENT", audit.prove, authority, "log", checkpoint.write(key, **fields), at=now)
    other = checkpoint.write(key, origin="https://log-9.appliance.internal", size=seen.size, root=seen.root)
    refused("TRUST_LOG_ORIGIN", audit.prove, authority, "log", other, at=now)
    refused("TRUST_LOG_UNKNOWN", audit.prove, authority, "signing-1", other, at=now)


def test_a_retired_log_can_still_be_exported_and_audited(exported, now):
    """After a theft of its key somebody must look through it, and the guide rotates first."""
    authority, data, _ = exported
    ceremony.rotate_service(authority, "log", now=now + timedelta(hours=1))
    opened, later = Authority.open(authority.path), now + timedelta(hours=2)
    trusted_root = Repository(opened).target(TRUSTED_ROOT)
    assert audit.audit(audit.export(opened, "log", at=later), trusted_root).origin == "https://log-2.appliance.internal"
    assert audit.audit(audit.export(opened, "log-1", at=later), trusted_root) == audit.audit(data, trusted_root)


@pytest.mark.parametrize("entry", [b"[" * 100_000, b'{"spec":{"signature":{"publicKey":{"content":"AAAA"}}}}', b"\xff"])
def test_an_entry_that_names_nobody_is_counted_and_nothing_else(entry, tmp_path, zone, now):
    shutil.copytree(zone.path, tmp_path / "ca")
    authority = Authority.open(tmp_path / "ca")
    authority.log("log", at=now).append(entry)
    found = audit.audit(audit.export(authority, "log", at=now), Repository(authority).target(TRUSTED_ROOT))
    assert found.size > sum(found.signers.values())


EXPORTS = {
    "an entry left out": ("TRUST_LOG_DAMAGED", lambda d: d.update(entries=d["entries"][:-1])),
    "an entry changed": ("TRUST_LOG_DAMAGED", lambda d: d["entries"].__setitem__(0, "AAAA")),
    "another log's name": ("TRUST_LOG_UNKNOWN", lambda d: d.update(origin="https://log.example")),
    "a checkpoint cut off": ("TRUST_LOG_CHECKPOINT", lambda d: d.update(checkpoint=d["checkpoint"][:-9])),
    "no entries": ("TRUST_LOG_EXPORT", lambda d: d.pop("entries")),
    "another type": ("TRUST_LOG_EXPORT", lambda d: d.update(_type="x")),
    "entries that are no base64": ("TRUST_LOG_EXPORT", lambda d: d.update(entries=["!"])),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_with(name, exported):
    code, change = EXPORTS[name]
    _, data, trusted_root = exported
    document = json.loads(data)
    change(document)
    refused(code, audit.audit, documents.write_json(document), trusted_root)


def test_an_empty_log_can_be_exported_and_audited(tmp_path, zone, now):
    shutil.copytree(zone.path, tmp_path / "ca")
    shutil.rmtree(tmp_path / "ca/log", ignore_errors=True)
    authority = Authority.open(tmp_path / "ca")
    data = audit.export(authority, "log", at=now)
    assert audit.audit(data, Repository(authority).target(TRUSTED_ROOT)).size == 0
