"""What the fuzzers drive: every parser at the trust boundary, and the rule that each must keep.

The rule: a mutant is refused with an `ApplianceError`; nothing but the original bytes is ever accepted, and no other
exception escapes. Hypothesis runs it with the tests (`test_mutants.py`), atheris for as long as one likes
(`run_atheris.py`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from appliance import documents
from appliance.artifact import from_files
from appliance.errors import ApplianceError
from appliance.trust import audit, ceremony, checkpoint, proposal, timestamping, trusted_root
from appliance.trust.anchor import read_anchor
from appliance.trust.authorisation import check_token, write_token
from appliance.trust.authority import Authority
from appliance.trust.leaf import read_leaf
from appliance.trust.names import statement_type
from appliance.trust.policy import read_policy, write_policy
from appliance.trust.repository import Repository
from appliance.trust.stamp import verify_token
from appliance.trust.store import TrustStore
from appliance.trust.verification import verify_artifact, verify_statement
from tests.support.trust import make_authority

BIRTH = datetime(2026, 11, 1, 12, tzinfo=UTC)
NOW = BIRTH + timedelta(days=10)
FILES = {"router.yaml": b"name: r\n", "router.safetensors": b"weights"}
MACHINE = "a" * 64


@dataclass(frozen=True)
class Target:
    """A parser under attack.

    Attributes:
        original: bytes that are accepted.
        accept: takes bytes; returns if they are accepted, raises ApplianceError if not.
        only_original: whether nothing but the original bytes may ever be accepted (a parser of documents whose
            authenticity is checked elsewhere accepts other well-formed documents).
    """

    original: bytes
    accept: Callable[[bytes], object]
    only_original: bool

    def try_one(self, data: bytes) -> None:
        """Apply the rule to one input.

        Raises:
            AssertionError: a mutant was accepted.
        """
        try:
            self.accept(data)
        except ApplianceError:
            assert data != self.original, "the original was refused"
            return
        assert not self.only_original or data == self.original, "a mutant was accepted"


def targets(folder: Path) -> dict[str, Target]:
    """Build an authority in a folder, and every target over it."""
    zone = make_authority(folder / "ca", now=BIRTH)
    authority = Authority.open(zone.path)
    repository, material, anchors = Repository(authority), zone.material, authority.anchors()
    payload = documents.write_json({"_type": statement_type("channel"), "name": "stable", "epoch": 7})
    bundle = zone.signer("import-officer", at=NOW).sign_statement(payload)
    signature = zone.signer("import-officer", at=NOW).sign_artifact(FILES)
    root = repository.root().signed
    token = write_token(authority, "downgrade", machine=MACHINE, version="1", now=NOW, lifetime=timedelta(days=7))
    drafted = proposal.sign(ceremony.propose_root(authority, {}, now=NOW), authority.keys.load("tuf-root-1"))
    draft = proposal.write(drafted)
    parsed = json.loads(bundle)["verificationMaterial"]
    from base64 import b64decode

    leaf = b64decode(parsed["certificate"]["rawBytes"])
    stamp = b64decode(parsed["timestampVerificationData"]["rfc3161Timestamps"][0]["signedTimestamp"])
    signed = b64decode(json.loads(bundle)["messageSignature"]["signature"])
    note = parsed["tlogEntries"][0]["inclusionProof"]["checkpoint"]["envelope"].encode()
    log = next(iter(anchors.logs.values()))
    exported = audit.export(authority, "log", at=NOW)
    assert timestamping.POLICY

    def judge(data: bytes, signed_bundle: bytes) -> object:
        return verify_statement(data, signed_bundle, kind="channel", material=material, at=NOW)

    def judge_artifact(files: dict[str, bytes], signed_bundle: bytes) -> object:
        artifact = from_files({**files, "artifact.sigstore.json": signed_bundle})
        return verify_artifact(artifact, material=material, at=NOW)

    def judge_checkpoint(data: bytes) -> None:
        head = checkpoint.read(data.decode("utf-8", "replace"))
        checkpoint.verify(head, log.key, origin=log.url)

    def judge_token(data: bytes) -> object:
        return check_token(data, action="downgrade", version="1", machine=MACHINE, root=root, used={}, now=NOW)

    def judge_metadata(name: str) -> Callable[[bytes], None]:
        def accept(data: bytes) -> None:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                media = Path(scratch) / "media"
                shutil.copytree(zone.repository, media)
                (media / "metadata" / name).write_bytes(data)
                TrustStore.initialise(Path(scratch) / "state", zone.anchor, media, now=NOW)

        return accept

    def metadata(name: str) -> Target:
        # white space and unsigned parts of TUF metadata are not authenticated; a mutant that says the same may pass
        return Target((zone.repository / "metadata" / name).read_bytes(), judge_metadata(name), only_original=False)

    return {
        "statement": Target(payload, lambda data: judge(data, bundle), only_original=True),
        "bundle": Target(bundle, lambda data: judge(payload, data), only_original=True),
        "artifact bundle": Target(signature, lambda data: judge_artifact(FILES, data), only_original=True),
        "artifact file": Target(
            FILES["router.yaml"],
            lambda data: judge_artifact({**FILES, "router.yaml": data}, signature),
            only_original=True,
        ),
        "certificate": Target(leaf, lambda data: read_leaf(data, anchors), only_original=True),
        "time-stamp": Target(stamp, lambda data: verify_token(data, signed, anchors), only_original=True),
        "checkpoint": Target(note, judge_checkpoint, only_original=True),
        "authorisation": Target(token, judge_token, only_original=True),
        # a draft is compared by its digest; the signatures within are what nobody may alter
        "root proposal": Target(draft, proposal.read, only_original=False),
        "log export": Target(exported, lambda data: audit.audit(data, material.trusted_root), only_original=False),
        "anchor": Target(zone.anchor, read_anchor, only_original=False),
        "policy": Target(write_policy(material.policy), read_policy, only_original=False),
        "trusted root": Target(material.trusted_root, trusted_root.read, only_original=False),
        "timestamp.json": metadata("timestamp.json"),
        "1.snapshot.json": metadata("1.snapshot.json"),
        "1.targets.json": metadata("1.targets.json"),
    }
