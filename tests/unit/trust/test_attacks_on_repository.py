"""Attacks on the trust repository, through our client path: each refused with its code, the state left as it was."""

import json
import shutil
from datetime import timedelta

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, MetaFile, TargetFile, Targets

from appliance.errors import ApplianceError
from appliance.trust import keys
from appliance.trust.authority import Authority
from appliance.trust.keys import KeyRing
from appliance.trust.repository import Repository
from appliance.trust.store import TrustStore
from tests.support.media import Media, contents
from tests.support.trust import DevelopmentAuthority, make_authority

DAY = timedelta(days=1)


@pytest.fixture
def own(zone, tmp_path):
    """An authority of one's own that a test may change: a copy of the shared one."""
    shutil.copytree(zone.path, tmp_path / "ca")
    return DevelopmentAuthority(tmp_path / "ca")


@pytest.fixture
def repository(own):
    return Repository(Authority.open(own.path))


@pytest.fixture
def store(own, repository, tmp_path, now):
    """A host that has seen a few versions: timestamp, snapshot and targets stand at 3."""
    repository.publish(now=now)
    repository.publish(now=now)
    return own.store(tmp_path / "state", now=now)


@pytest.fixture
def media(own, store, tmp_path):
    return Media(own.path, tmp_path / "media")


def drop(*names):
    def apply(media):
        for name in names:
            (media.path / name).unlink()

    return apply


def expire(role):
    def apply(media):
        media.sign(role, lambda signed: setattr(signed, "expires", signed.expires - 10_000 * DAY))
        if role == "targets":
            media.tie()
        if role == "snapshot":
            version = media.load("snapshot").signed.version
            media.sign("timestamp", lambda t: setattr(t, "snapshot_meta", MetaFile(version=version)))

    return apply


def older(role):
    """Sign an older version of a role as current, everything above it being new and in order."""

    def apply(media):
        if role == "timestamp":
            media.sign("timestamp", lambda t: setattr(t, "version", 1), bump=False)
        elif role == "snapshot":
            media.sign("timestamp", lambda t: setattr(t, "snapshot_meta", MetaFile(version=1)))
        else:
            media.sign("snapshot", lambda s: s.meta.update({"targets.json": MetaFile(version=1)}))
            version = media.load("snapshot").signed.version
            media.sign("timestamp", lambda t: setattr(t, "snapshot_meta", MetaFile(version=version)))

    return apply


def signed_by(role, *keys):
    def apply(media):
        media.sign(role, lambda _: None, keys=keys)
        if role == "targets":
            media.tie()
        if role == "snapshot":
            version = media.load("snapshot").signed.version
            media.sign("timestamp", lambda t: setattr(t, "snapshot_meta", MetaFile(version=version)))

    return apply


def twice_by_one(media):
    """Two signatures by one root key under two key ids: the threshold counts keys, not signatures."""
    metadata = media.load("root")
    media.sign("root", lambda _: None, keys=("tuf-root-1",))
    path = media.newest("root")
    document = json.loads(path.read_text())
    other = metadata.signed.roles["root"].keyids[1]
    document["signatures"].append({**document["signatures"][0], "keyid": other})
    path.write_text(json.dumps(document))


def without_target(name):
    def apply(media):
        media.sign("targets", lambda t: t.targets.pop(name))
        media.tie()

    return apply


def target_file(media, name):
    entry = media.load("targets").signed.targets[name]
    return media.path / "targets" / f"{entry.hashes['sha256']}.{name}"


def altered_target(name, change):
    def apply(media):
        path = target_file(media, name)
        path.write_bytes(change(path.read_bytes()))
        media.sign("timestamp", lambda _: None)

    return apply


def fresh_targets(change):
    """New targets metadata, so that the targets on the media are looked at again."""

    def apply(media):
        media.sign("targets", lambda _: None)
        media.tie()
        change(media)

    return apply


def swapped_targets(media):
    """policy.json and trusted_root.json exchanged, hashes and names of the files adjusted."""

    def swap(targets):
        first, second = targets.targets["policy.json"], targets.targets["trusted_root.json"]
        for name, entry, old in (
            ("policy.json", second, "trusted_root.json"),
            ("trusted_root.json", first, "policy.json"),
        ):
            source = media.path / "targets" / f"{entry.hashes['sha256']}.{old}"
            shutil.copy(source, media.path / "targets" / f"{entry.hashes['sha256']}.{name}")
        targets.targets["policy.json"] = TargetFile(second.length, second.hashes, "policy.json")
        targets.targets["trusted_root.json"] = TargetFile(first.length, first.hashes, "trusted_root.json")

    media.sign("targets", swap)
    media.tie()


def delegated_target(media):
    """policy.json moved to a delegated role, whose key is the attacker's."""
    attacker, moved = CryptoSigner(keys.generate()), {}

    def delegate(targets):
        moved["policy.json"] = targets.targets.pop("policy.json")
        role = DelegatedRole("helper", [attacker.public_key.keyid], 1, True, paths=["*"])
        targets.delegations = Delegations({attacker.public_key.keyid: attacker.public_key}, {"helper": role})

    media.sign("targets", delegate)
    helper = Metadata(Targets(expires=media.load("targets").signed.expires, targets=moved))
    helper.sign(attacker)
    (media.path / "metadata/1.helper.json").write_bytes(helper.to_bytes())
    media.tie(helper=1)


def text(role, change):
    def apply(media):
        path = media.newest(role)
        path.write_bytes(change(path.read_bytes()))

    return apply


def skip_root(media):
    """Root 3 without root 2, and all else signed under it."""
    media.sign("root", lambda r: setattr(r, "version", 2))
    media.sign("timestamp", lambda _: None, keys=("tuf-snapshot-1",))


def other_version_inside(media):
    media.sign("root", lambda _: None)
    media.newest("root").rename(media.path / "metadata/9.root.json")
    shutil.copy(media.path / "metadata/9.root.json", media.path / "metadata/2.root.json")
    media.sign("root", lambda r: setattr(r, "version", 5), bump=False)
    (media.path / "metadata/5.root.json").replace(media.path / "metadata/2.root.json")


def self_appointed(media):
    """A new root that names the attacker's keys alone, signed by them."""
    from securesystemslib.signer import CryptoSigner

    attacker = CryptoSigner.generate_ecdsa()
    metadata = media.load("root")
    for role in ("root", "targets", "snapshot", "timestamp"):
        for key in list(metadata.signed.roles[role].keyids):
            metadata.signed.revoke_key(key, role)
        metadata.signed.add_key(attacker.public_key, role)
        metadata.signed.roles[role].threshold = 1
    metadata.signed.version += 1
    metadata.signatures.clear()
    metadata.sign(attacker)
    (media.path / f"metadata/{metadata.signed.version}.root.json").write_bytes(metadata.to_bytes())


def lowered_threshold(media):
    media.sign("root", lambda r: setattr(r.roles["root"], "threshold", 1), keys=("tuf-root-1",))


def linked(name):
    def apply(media):
        path = media.path / name
        path.rename(media.path / "elsewhere")
        path.symlink_to(media.path / "elsewhere")

    return apply


def _unsigned(document):
    return json.dumps({**json.loads(document), "signatures": []}).encode()


ATTACKS = {
    # rollback
    "an older timestamp": ("TRUST_OLDER", older("timestamp")),
    "an older snapshot under a new timestamp": ("TRUST_OLDER", older("snapshot")),
    "older targets under a new snapshot": ("TRUST_OLDER", older("targets")),
    # freeze
    "an expired timestamp": ("TRUST_METADATA_EXPIRED", expire("timestamp")),
    "an expired snapshot": ("TRUST_METADATA_EXPIRED", expire("snapshot")),
    "expired targets": ("TRUST_METADATA_EXPIRED", expire("targets")),
    "an expired root": ("TRUST_METADATA_EXPIRED", expire("root")),
    # mix and match
    "a snapshot that is not the timestamp's": (
        "TRUST_REPOSITORY_INCOMPLETE",
        lambda m: m.sign("timestamp", lambda t: setattr(t, "snapshot_meta", MetaFile(version=9))),
    ),
    "another version inside the snapshot's file": (
        "TRUST_OLDER",
        lambda m: (
            shutil.copy(m.path / "metadata/3.snapshot.json", m.path / "metadata/4.snapshot.json"),
            m.sign("timestamp", lambda t: setattr(t, "snapshot_meta", MetaFile(version=4))),
        ),
    ),
    "another version inside the targets' file": (
        "TRUST_OLDER",
        lambda m: (shutil.copy(m.newest("targets"), m.path / "metadata/4.targets.json"), m.tie_to_targets(4)),
    ),
    "the two targets exchanged": ("TRUST_POLICY_MALFORMED", swapped_targets),
    # threshold and keys
    "a timestamp without signature": ("TRUST_THRESHOLD", text("timestamp", _unsigned)),
    "a timestamp signed by the snapshot key": ("TRUST_THRESHOLD", signed_by("timestamp", "tuf-snapshot-1")),
    "a snapshot signed by the timestamp key": ("TRUST_THRESHOLD", signed_by("snapshot", "tuf-timestamp-1")),
    "targets signed by snapshot and timestamp keys": (
        "TRUST_THRESHOLD",
        signed_by("targets", "tuf-snapshot-1", "tuf-timestamp-1"),
    ),
    "targets signed by two root keys": ("TRUST_THRESHOLD", signed_by("targets", "tuf-root-1", "tuf-root-2")),
    "a root signed by one of three": ("TRUST_THRESHOLD", signed_by("root", "tuf-root-1")),
    "a root signed twice by one": ("TRUST_THRESHOLD", twice_by_one),
    "a root signed by the targets key": ("TRUST_THRESHOLD", signed_by("root", "tuf-targets-1", "tuf-root-1")),
    "a root that lowers its own threshold": ("TRUST_THRESHOLD", lowered_threshold),
    "a root that appoints itself": ("TRUST_THRESHOLD", self_appointed),
    "a root of another version in its file": ("TRUST_OLDER", other_version_inside),
    "a root that skips a version": ("TRUST_THRESHOLD", skip_root),
    # targets
    "a policy with a byte turned": (
        "TRUST_METADATA_HASH",
        fresh_targets(altered_target("policy.json", lambda d: d.replace(b"release", b"selease", 1))),
    ),
    "a policy that is longer": (
        "TRUST_METADATA_HASH",
        fresh_targets(altered_target("policy.json", lambda d: d + b" ")),
    ),
    "a policy that is cut short": (
        "TRUST_METADATA_HASH",
        fresh_targets(altered_target("policy.json", lambda d: d[:-9])),
    ),
    "a policy that is missing": (
        "TRUST_REPOSITORY_INCOMPLETE",
        fresh_targets(lambda m: target_file(m, "policy.json").unlink()),
    ),
    "no policy": ("TRUST_TARGET_MISSING", without_target("policy.json")),
    "a policy by a delegated role": ("TRUST_TARGET_MISSING", delegated_target),
    "no trusted root": ("TRUST_TARGET_MISSING", without_target("trusted_root.json")),
    # form
    "no timestamp": ("TRUST_REPOSITORY_INCOMPLETE", drop("metadata/timestamp.json")),
    "a timestamp that is no JSON": ("TRUST_METADATA_MALFORMED", text("timestamp", lambda _: b"\x00")),
    "an empty timestamp": ("TRUST_METADATA_MALFORMED", text("timestamp", lambda _: b"")),
    "a timestamp that is a list": ("TRUST_METADATA_MALFORMED", text("timestamp", lambda d: b"[" + d + b"]")),
    "a timestamp without end": ("TRUST_METADATA_HASH", text("timestamp", lambda d: d + b" " * 600_000)),
    "a timestamp cut short": ("TRUST_METADATA_MALFORMED", text("timestamp", lambda d: d[: len(d) // 2])),
    "a snapshot in the timestamp's place": (
        "TRUST_METADATA_MALFORMED",
        lambda m: shutil.copy(m.newest("snapshot"), m.path / "metadata/timestamp.json"),
    ),
    "a timestamp that is a link": ("TRUST_REPOSITORY_INCOMPLETE", linked("metadata/timestamp.json")),
    "a folder in the timestamp's place": (
        "TRUST_REPOSITORY_INCOMPLETE",
        lambda m: (drop("metadata/timestamp.json")(m), (m.path / "metadata/timestamp.json").mkdir()),
    ),
    "no time of issue": (
        "TRUST_STATE_DAMAGED",
        lambda m: m.sign("timestamp", lambda t: t.unrecognized_fields.clear()),
    ),
    "nothing at all": ("TRUST_REPOSITORY_INCOMPLETE", lambda m: shutil.rmtree(m.path)),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_on_the_repository_is_refused_and_leaves_the_state(name, store, media, now):
    code, tamper = ATTACKS[name]
    before = contents(store.directory)
    tamper(media)
    with pytest.raises(ApplianceError) as caught:
        store.refresh(media.path, now=now)
    assert caught.value.code == code, caught.value
    assert contents(store.directory).keys() - {"lock"} == before.keys() - {"lock"}
    assert {k: v for k, v in contents(store.directory).items() if k != "lock"} == before
    store.material(now=now)


def test_the_honest_twin_of_every_repository_attack_is_accepted(store, media, now):
    media.sign("targets", lambda _: None)
    media.tie()
    store.refresh(media.path, now=now)
    assert store.state().versions == {"root": 1, "timestamp": 4, "snapshot": 4, "targets": 4}


def test_the_same_media_twice_are_accepted(store, media, now):
    store.refresh(media.path, now=now)
    store.refresh(media.path, now=now)


def test_the_repository_stays_small_however_often_it_is_published(repository, own, now):
    """It travels on every medium; what no client asks for goes to the authority's history."""
    before = len(contents(own.repository))
    for _ in range(10):
        repository.publish(now=now)
    assert len(contents(own.repository)) == before
    assert len(contents(own.path / "history")) >= 20


def test_a_rotated_root_key_is_followed_from_the_anchor_through_many_roots(store, repository, own, now):
    for name in ("tuf-root-1", "tuf-root-2", "tuf-root-3", "tuf-targets-1", "tuf-snapshot-1", "tuf-timestamp-1"):
        repository.rotate_key(name, now=now)
    store.refresh(own.repository, now=now)
    assert store.state().versions["root"] == 7
    store.material(now=now)


def test_a_fresh_host_follows_the_roots_from_an_old_anchor(own, repository, tmp_path, now):
    anchor = own.anchor
    for name in ("tuf-root-1", "tuf-root-2", "tuf-root-3"):
        repository.rotate_key(name, now=now)
    TrustStore.initialise(tmp_path / "state", anchor, own.repository, now=now).material(now=now)


def test_a_lost_root_key_is_replaced_by_the_other_two(store, repository, own, now):
    (own.path / "keys/tuf-root-2.pem").unlink()
    assert repository.rotate_key("tuf-root-2", now=now) == "tuf-root-4"
    store.refresh(own.repository, now=now)
    assert sorted(repository.key_names("root")) == ["tuf-root-1", "tuf-root-3", "tuf-root-4"]


def test_one_root_key_alone_cannot_replace_the_others(repository, own, now):
    for number in (2, 3):
        (own.path / f"keys/tuf-root-{number}.pem").unlink()
    before = contents(own.path)
    with pytest.raises(ApplianceError) as caught:
        repository.rotate_key("tuf-root-2", now=now)
    assert caught.value.code == "TRUST_THRESHOLD"
    assert contents(own.path) == before


def test_an_unknown_key_cannot_be_rotated(repository, now):
    with pytest.raises(ApplianceError) as caught:
        repository.rotate_key("tuf-root-9", now=now)
    assert caught.value.code == "TRUST_KEY_UNKNOWN"


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_revoked_role_key_signs_in_vain(role, store, repository, own, tmp_path, now):
    repository.rotate_key(f"tuf-{role}-1", now=now)
    store.refresh(own.repository, now=now)
    stolen = Media(own.path, tmp_path / "stolen")
    signed_by(role, f"tuf-{role}-1")(stolen)
    with pytest.raises(ApplianceError) as caught:
        store.refresh(stolen.path, now=now)
    assert caught.value.code == "TRUST_THRESHOLD"


def test_a_fast_forward_by_a_stolen_key_is_healed_by_rotating_it(store, repository, own, media, now):
    """The thief pushes version numbers to the end of counting; new keys let the versions start over."""
    media.sign("snapshot", lambda s: setattr(s, "version", 2**31))
    media.sign(
        "timestamp", lambda t: (setattr(t, "version", 2**31), t.__setattr__("snapshot_meta", MetaFile(2**31 + 1)))
    )
    store.refresh(media.path, now=now)
    repository.republish(now=now)
    with pytest.raises(ApplianceError) as caught:
        store.refresh(own.repository, now=now)
    assert caught.value.code == "TRUST_OLDER"
    for role in ("snapshot", "timestamp"):
        repository.rotate_key(f"tuf-{role}-1", now=now)
    store.refresh(own.repository, now=now)
    assert store.state().versions["timestamp"] < 100


def test_media_are_accepted_until_the_day_they_expire(store, media, now):
    expires = media.load("timestamp").signed.expires
    store.refresh(media.path, now=expires - timedelta(minutes=1))
    with pytest.raises(ApplianceError) as caught:
        store.refresh(media.path, now=expires)
    assert caught.value.code == "TRUST_METADATA_EXPIRED"


def test_media_older_than_the_anchor_are_refused_on_a_fresh_host(own, repository, tmp_path, now):
    from appliance.trust.anchor import write_anchor

    old = Media(own.path, tmp_path / "old")
    repository.publish(now=now)
    anchor = write_anchor(Authority.open(own.path), now=now)
    with pytest.raises(ApplianceError) as caught:
        TrustStore.initialise(tmp_path / "state", anchor, old.path, now=now)
    assert caught.value.code == "TRUST_OLDER"
    assert not (tmp_path / "state").exists()
    TrustStore.initialise(tmp_path / "state", anchor, own.repository, now=now)


def test_another_zones_repository_is_refused(store, other_zone, now):
    with pytest.raises(ApplianceError) as caught:
        store.refresh(other_zone.repository, now=now)
    assert caught.value.code == "TRUST_THRESHOLD"


def test_a_new_policy_takes_effect_with_the_next_refresh(store, repository, own, now):
    from appliance.trust.policy import Denied, write_policy

    denied = Denied(digests=("0" * 64,))
    repository.publish(
        {"policy.json": write_policy(repository.policy().model_copy(update={"denied": denied}))}, now=now
    )
    assert store.material(now=now).policy.denied.digests == ()
    store.refresh(own.repository, now=now)
    assert store.material(now=now).policy.denied == denied


@pytest.mark.parametrize("name", ["metadata/timestamp.json", "metadata/snapshot.json", "metadata/targets.json"])
def test_a_kept_state_that_was_altered_is_found_out(name, store, now):
    path = store.directory / "current" / name
    path.write_bytes(path.read_bytes().replace(b'"sig": "30', b'"sig": "31'))
    with pytest.raises(ApplianceError) as caught:
        store.material(now=now)
    assert caught.value.code == "TRUST_STATE_DAMAGED"


@pytest.mark.parametrize("name", ["policy.json", "trusted_root.json"])
def test_a_kept_target_that_was_altered_is_found_out(name, store, now):
    path = store.directory / "current/targets" / name
    path.write_bytes(path.read_bytes().replace(b"release-signer", b"release-sinner"))
    if name == "trusted_root.json":
        path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ApplianceError) as caught:
        store.material(now=now)
    assert caught.value.code == "TRUST_STATE_DAMAGED"


def test_keys_of_a_role_are_distinct_keys(zone):
    ring = KeyRing(zone.path / "keys")
    names = [path.stem for path in (zone.path / "keys").glob("*.pem")]
    from appliance.trust.keys import key_id

    assert len({key_id(ring.load(name).public_key()) for name in names}) == len(names) == 12


def test_an_authority_is_never_overwritten(zone):
    with pytest.raises(ApplianceError) as caught:
        make_authority(zone.path)
    assert caught.value.code == "TRUST_AUTHORITY_EXISTS"
