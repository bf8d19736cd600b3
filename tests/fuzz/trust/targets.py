"""What the fuzzers drive: every parser at the trust boundary, and the rule that each must keep.

The rule: a mutant is refused with an `ApplianceError`, and no other exception escapes. What is signed byte for byte is
accepted in its original bytes alone; what may be written in several ways (TUF metadata, say) is accepted only where it
means the same. Hypothesis and atheris run it with the tests (`test_mutants.py`), atheris for as long as one likes
besides (`run_atheris.py`).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from base64 import b64decode
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any

from appliance import documents
from appliance.artifact import from_files, router_metadata
from appliance.errors import ApplianceError, TrustError
from appliance.trust import audit, ceremony, checkpoint, oms, proposal, trusted_root
from appliance.trust.anchor import read_anchor
from appliance.trust.authorisation import check_token, write_token
from appliance.trust.authority import Authority
from appliance.trust.encoding import b64
from appliance.trust.keys import KeyRing, public_der, read_public_key
from appliance.trust.leaf import read_leaf
from appliance.trust.names import statement_type
from appliance.trust.policy import read_policy, write_policy
from appliance.trust.profiles import POLICY_NAME, PROFILES_NAME, built_in, read_recipes
from appliance.trust.repository import Repository
from appliance.trust.stamp import verify_token
from appliance.trust.store import TrustStore
from appliance.trust.verification import verify_artifact, verify_statement
from tests.support.artifacts import router_files
from tests.support.trust import DevelopmentAuthority, make_authority

BIRTH = datetime(2026, 11, 1, 12, tzinfo=UTC)
NOW = BIRTH + timedelta(days=10)
FILES = {"router.yaml": b"name: r\n", "router.safetensors": b"weights"}
MACHINE = "a" * 64


class Accepted(Enum):
    """What of the mutants a parser may accept."""

    NOTHING = "not one: every byte is signed, or has its digest signed"
    THE_SAME = "what says the same: the result must be the original's"
    WELL_FORMED = "any well-formed document: its authenticity is checked elsewhere (a digest, a signature around it)"


@dataclass(frozen=True)
class Target:
    """A parser under attack.

    Attributes:
        original: bytes that are accepted.
        accept: takes bytes; returns what they mean if they are accepted, raises ApplianceError if not.
        mutants: which of them may be accepted.
    """

    original: bytes
    accept: Callable[[bytes], object]
    mutants: Accepted = Accepted.NOTHING

    @cached_property
    def meaning(self) -> object:
        """What the original bytes mean."""
        return self.accept(self.original)

    def try_one(self, data: bytes) -> None:
        """Apply the rule to one input.

        Raises:
            AssertionError: a mutant was accepted.
        """
        try:
            found = self.accept(data)
        except ApplianceError:
            assert data != self.original, "the original was refused"
            return
        if data == self.original or self.mutants is Accepted.WELL_FORMED:
            return
        assert self.mutants is Accepted.THE_SAME, "a mutant was accepted"
        assert found == self.meaning, "a mutant was accepted that means something else"


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
    leaf = b64decode(parsed["certificate"]["rawBytes"])
    stamp = b64decode(parsed["timestampVerificationData"]["rfc3161Timestamps"][0]["signedTimestamp"])
    signed = b64decode(json.loads(bundle)["messageSignature"]["signature"])
    entry = parsed["tlogEntries"][0]
    note = entry["inclusionProof"]["checkpoint"]["envelope"].encode()
    log = next(iter(anchors.logs.values()))
    exported = audit.export(authority, "log", at=NOW)
    seen = audit.audit(exported, material.trusted_root).checkpoint
    zone.signer("import-officer", at=NOW).sign_statement(payload)
    proven = audit.prove(authority, "log", seen, at=NOW)
    state = zone.store(folder / "state", now=NOW)
    (state.directory / "used.json").write_bytes(documents.write_json({"0" * 32: "2026-11-11T12:00:00Z"}))
    rotated = _with_a_second_root(folder / "rotated", zone)
    router = router_files()
    key = authority.keys.path("log-1").read_bytes()
    public = (zone.path / "certificates/log-1.pub.pem").read_bytes()

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

    def within(change: Callable[[dict[str, Any], str], None]) -> Callable[[bytes], object]:
        """Bytes put into one field of the bundle, which is otherwise right and in canonical form."""

        def accept(data: bytes) -> object:
            document = json.loads(bundle)
            change(document["verificationMaterial"]["tlogEntries"][0], b64(data))
            return judge(payload, documents.write_json(document))

        return accept

    def metadata(name: str) -> Target:
        # white space and unsigned parts of TUF metadata are not authenticated; a mutant that says the same may pass
        def accept(data: bytes) -> object:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                media = Path(scratch) / "media"
                shutil.copytree(rotated, media)
                (media / "metadata" / name).write_bytes(data)
                return _meaning(TrustStore.initialise(Path(scratch) / "state", zone.anchor, media, now=NOW))

        return Target((rotated / "metadata" / name).read_bytes(), accept, Accepted.THE_SAME)

    def kept(name: str, use: Callable[[TrustStore], object], mutants: Accepted = Accepted.THE_SAME) -> Target:
        """A file of a host's own state, which its owner alone can write."""
        place = state.directory / name
        original = place.read_bytes()

        def accept(data: bytes) -> object:
            place.write_bytes(data)
            try:
                return use(TrustStore.open(state.directory))
            finally:
                place.write_bytes(original)

        return Target(original, accept, mutants)

    def in_a_file(read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def accept(data: bytes) -> object:
            (folder / "mutant.pem").write_bytes(data)
            return read(folder / "mutant.pem")

        return accept

    def judge_recipe(name: str) -> Callable[[bytes], object]:
        def accept(data: bytes) -> object:
            place = folder / "recipes"
            place.mkdir(exist_ok=True)
            for each in (PROFILES_NAME, POLICY_NAME):
                (place / each).write_bytes(data if each == name else built_in(each))
            return read_recipes(place)

        return accept

    def recipe(name: str) -> Target:
        return Target(built_in(name), judge_recipe(name), Accepted.WELL_FORMED)

    def redeem_nothing(store: TrustStore) -> object:
        """The used authorisations are read before a token is looked at; this one is of another machine."""
        try:
            store.redeem(token, action="downgrade", version="1", now=NOW, machine="b" * 64)
        except TrustError as error:
            if error.code != "TRUST_TOKEN_MACHINE":
                raise
        return store.floor()

    return {
        "statement": Target(payload, lambda data: judge(data, bundle)),
        "bundle": Target(bundle, lambda data: judge(payload, data)),
        "artifact bundle": Target(signature, lambda data: judge_artifact(FILES, data)),
        "artifact file": Target(
            FILES["router.yaml"], lambda data: judge_artifact({**FILES, "router.yaml": data}, signature)
        ),
        "certificate": Target(leaf, lambda data: read_leaf(data, anchors)),
        "time-stamp": Target(stamp, lambda data: verify_token(data, signed, anchors)),
        "checkpoint": Target(note, judge_checkpoint),
        "log promise": Target(
            b64decode(entry["inclusionPromise"]["signedEntryTimestamp"]),
            within(lambda entry, data: entry["inclusionPromise"].update(signedEntryTimestamp=data)),
        ),
        "log entry": Target(
            b64decode(entry["canonicalizedBody"]), within(lambda entry, data: entry.update(canonicalizedBody=data))
        ),
        "OMS payload": Target(oms.payload(FILES), lambda data: oms.check(data, from_files(FILES).digests)),
        "authorisation": Target(token, judge_token),
        # a draft is compared by its digest; the signatures within are what nobody may alter
        "root proposal": Target(draft, proposal.read, Accepted.WELL_FORMED),
        "log export": Target(exported, lambda data: audit.audit(data, material.trusted_root), Accepted.THE_SAME),
        "consistency proof": Target(
            proven, lambda data: audit.audit(data, material.trusted_root, earlier=seen), Accepted.THE_SAME
        ),
        "anchor": Target(zone.anchor, read_anchor, Accepted.WELL_FORMED),
        "policy": Target(write_policy(material.policy), read_policy, Accepted.WELL_FORMED),
        "trusted root": Target(material.trusted_root, trusted_root.read, Accepted.WELL_FORMED),
        "trust configuration": Target(
            trusted_root.client_trust_config(material.trusted_root),
            lambda data: trusted_root.read(trusted_root.from_trust_config(data)),
            Accepted.WELL_FORMED,
        ),
        "policy.yaml": recipe(POLICY_NAME),
        "profiles.yaml": recipe(PROFILES_NAME),
        "router.yaml": Target(
            router["router.yaml"],
            lambda data: router_metadata(from_files({**router, "router.yaml": data})),
            Accepted.WELL_FORMED,
        ),
        "public key": Target(public, in_a_file(lambda path: public_der(read_public_key(path))), Accepted.WELL_FORMED),
        "private key": Target(
            key, in_a_file(lambda path: KeyRing(folder, elsewhere={"log-1": path}).load("log-1")), Accepted.WELL_FORMED
        ),
        "authority.json": Target(
            (zone.path / "authority.json").read_bytes(),
            _judge_authority(folder / "copy", zone.path),
            Accepted.WELL_FORMED,
        ),
        "timestamp.json": metadata("timestamp.json"),
        "2.root.json": metadata("2.root.json"),
        "1.snapshot.json": metadata("1.snapshot.json"),
        "1.targets.json": metadata("1.targets.json"),
        "kept anchor.json": kept("anchor.json", _meaning, Accepted.WELL_FORMED),
        "kept host.json": kept("host.json", _meaning),
        "kept clock.json": kept("clock.json", lambda store: store.checked_time(NOW), Accepted.WELL_FORMED),
        "kept used.json": kept("used.json", redeem_nothing),
        "kept targets.json": kept("current/metadata/targets.json", _meaning),
        "kept policy.json": kept("current/targets/policy.json", _meaning, Accepted.NOTHING),
    }


def _with_a_second_root(folder: Path, zone: DevelopmentAuthority) -> Path:
    """The repository after a root key was replaced: one more root to follow from the anchor."""
    shutil.copytree(zone.path, folder)
    Repository(Authority.open(folder)).rotate_key("tuf-root-3", now=NOW)
    return folder / "repository"


def _meaning(store: TrustStore) -> object:
    """All that a host takes from its trust state."""
    material, state = store.material(now=NOW), store.state()
    return material, state.versions, state.expiries, state.issued, state.contents, sorted(state.root.keys)


def _judge_authority(folder: Path, authority: Path) -> Callable[[bytes], object]:
    shutil.copytree(authority, folder)

    def accept(data: bytes) -> object:
        (folder / "authority.json").write_bytes(data)
        return Authority.open(folder).state

    return accept
