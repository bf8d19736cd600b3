"""Versions never change, pointers only go forward, and nothing is believed that is not signed."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from appliance import documents
from appliance.artifact import MAX_BYTES, SIGNATURE_NAME
from appliance.errors import ApplianceError, RegistryError
from appliance.registry import channel as channels
from appliance.registry.contract import Blob, file_key
from appliance.registry.directory import DirectoryStore
from appliance.registry.registry import Registry
from appliance.trust.signing import Signer
from tests.support.artifacts import router_files, signed
from tests.unit.registry.conftest import Zone


def code_of(info: pytest.ExceptionInfo[ApplianceError]) -> str:
    return info.value.code


def test_a_published_version_is_fetched_as_it_was(zone: Zone) -> None:
    digest = zone.publish("1.0.0")
    assert zone.registry.fetch("default", "1.0.0").digest == digest
    [summary] = zone.registry.versions()
    assert (summary.name, summary.version, summary.complete, summary.files) == ("default", "1.0.0", True, 4)


def test_publishing_the_same_bytes_again_changes_nothing(zone: Zone) -> None:
    artifact = signed(router_files(), zone.officer)
    zone.registry.publish(artifact, name="default", version="1.0.0")
    before = zone.file("1.0.0").stat().st_mtime_ns
    zone.registry.publish(artifact, name="default", version="1.0.0")
    assert zone.file("1.0.0").stat().st_mtime_ns == before


def test_a_published_version_never_changes(zone: Zone) -> None:
    zone.publish("1.0.0", payload=b"one")
    with pytest.raises(RegistryError) as info:
        zone.publish("1.0.0", payload=b"two")
    assert code_of(info) == "REGISTRY_IMMUTABLE"
    assert zone.file("1.0.0").read_bytes() == b"one"


def test_a_file_that_was_slipped_into_a_version_is_seen(zone: Zone) -> None:
    artifact = signed(router_files(), zone.officer)
    zone.registry.publish(artifact, name="default", version="1.0.0")
    zone.file("1.0.0", "extra.json").write_bytes(b"{}")
    with pytest.raises(RegistryError) as info:
        zone.registry.publish(artifact, name="default", version="1.0.0")
    assert code_of(info) == "REGISTRY_IMMUTABLE"
    with pytest.raises(ApplianceError):
        zone.promote("1.0.0")


def test_publishing_again_completes_what_a_kill_left(zone: Zone) -> None:
    artifact = signed(router_files(), zone.officer)
    zone.registry.publish(artifact, name="default", version="1.0.0")
    zone.file("1.0.0", "artifact.sigstore.json").unlink()
    with pytest.raises(RegistryError) as info:
        zone.registry.fetch("default", "1.0.0")
    assert code_of(info) == "REGISTRY_INCOMPLETE"
    assert not zone.registry.versions()[0].complete
    zone.registry.publish(artifact, name="default", version="1.0.0")
    assert zone.registry.fetch("default", "1.0.0").digest == artifact.digest


def test_an_artifact_lies_only_under_its_own_name(zone: Zone) -> None:
    artifact = signed(router_files("default", "1.0.0"), zone.officer)
    with pytest.raises(RegistryError) as info:
        zone.registry.publish(artifact, name="other", version="1.0.0")
    assert code_of(info) == "REGISTRY_MISPLACED"


def test_an_unsigned_artifact_is_not_published(zone: Zone) -> None:
    from appliance.artifact import from_files

    with pytest.raises(ApplianceError) as info:
        zone.registry.publish(from_files(router_files()), name="default", version="1.0.0")
    assert code_of(info) == "ARTIFACT_UNSIGNED"
    assert zone.registry.versions() == []


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "a" * 65, "a\n", ".a"])
def test_names_that_do_not_travel_are_refused(zone: Zone, name: str) -> None:
    with pytest.raises(RegistryError) as info:
        zone.registry.fetch(name, "1.0.0")
    assert code_of(info) == "REGISTRY_NAME"
    with pytest.raises(RegistryError) as info:
        zone.registry.channel(name)
    assert code_of(info) == "REGISTRY_NAME"


def test_a_promotion_names_every_file_and_raises_the_epoch(zone: Zone) -> None:
    digest = zone.publish("1.0.0")
    zone.publish("1.1.0")
    first, second = zone.promote("1.0.0"), zone.promote("1.1.0")
    assert (first.pointer.epoch, second.pointer.epoch) == (1, 2)
    assert first.pointer.target is not None
    assert first.pointer.target.digest == digest
    assert set(first.pointer.target.files) == {
        "index.safetensors",
        "model.json",
        "router.yaml",
        "artifact.sigstore.json",
    }
    assert first.verdict.role == "import-officer"


def test_a_version_that_was_tampered_with_is_not_promoted(zone: Zone) -> None:
    zone.publish("1.0.0")
    zone.file("1.0.0").write_bytes(b"evil")
    with pytest.raises(ApplianceError) as info:
        zone.promote("1.0.0")
    assert code_of(info).startswith("TRUST_")
    assert zone.registry.channels() == []


def test_what_only_its_producer_signed_is_neither_published_nor_promoted(zone: Zone, zone_trust: tuple) -> None:
    """The border cannot be walked around with write access to the registry."""
    handed_in = signed(router_files("default", "6.6.6"), zone_trust[1]("producer"))
    with pytest.raises(RegistryError) as info:
        zone.registry.publish(handed_in, name="default", version="6.6.6")
    assert info.value.code == "REGISTRY_NOT_ADMITTED"
    for name, data in {**handed_in.files, SIGNATURE_NAME: handed_in.require_signature()}.items():
        zone.registry.store.put(file_key("router", "default", "6.6.6", name), data)
    with pytest.raises(RegistryError) as info:
        zone.registry.promote("default", "6.6.6", zone_trust[1]("import-officer"))
    assert info.value.code == "REGISTRY_NOT_ADMITTED"


def test_a_producer_may_not_promote(zone: Zone, zone_trust: tuple) -> None:
    zone.publish("1.0.0")
    with pytest.raises(ApplianceError) as info:
        zone.registry.promote("default", "1.0.0", zone_trust[1]("producer"))
    assert code_of(info) == "TRUST_ROLE"
    assert zone.registry.channels() == []


def test_a_pointer_under_another_channels_name_is_refused(zone: Zone) -> None:
    zone.publish("1.0.0")
    zone.promote("1.0.0")
    zone.pointer.rename(zone.pointer.with_name("other.json"))
    with pytest.raises(RegistryError) as info:
        zone.registry.channel("other")
    assert code_of(info) == "REGISTRY_CHANNEL_SWAPPED"


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b'{"statement":"e30=","bundle":1}', b'{"statement":"*","bundle":""}']
)
def test_something_else_under_a_channels_name_is_refused(zone: Zone, data: bytes) -> None:
    zone.store.put("channels/default.json", data)
    with pytest.raises(ApplianceError) as info:
        zone.registry.channel("default")
    assert code_of(info) in {"REGISTRY_CHANNEL_MALFORMED", "DOCUMENT_MALFORMED"}


def test_a_changed_pointer_is_refused(zone: Zone) -> None:
    zone.publish("1.0.0")
    state = zone.promote("1.0.0")
    statement, bundle = channels.split(state.envelope)
    forged = statement.replace(b'"epoch":1', b'"epoch":9')
    assert forged != statement
    import base64

    from appliance import documents

    zone.pointer.write_bytes(
        documents.write_json(
            {"statement": base64.b64encode(forged).decode(), "bundle": base64.b64encode(bundle).decode()}
        )
    )
    with pytest.raises(ApplianceError) as info:
        zone.registry.channel("default")
    assert code_of(info).startswith("TRUST_")


def test_renewal_changes_only_epoch_and_expiry(zone: Zone) -> None:
    zone.publish("1.0.0")
    before = zone.promote("1.0.0")
    zone.clock.advance(seconds=90)
    after = zone.registry.renew("default", zone.officer)
    assert after.pointer.target == before.pointer.target
    assert after.pointer.epoch == 2
    assert after.pointer.expires > before.pointer.expires


def test_a_revoked_version_leaves_its_channel_and_cannot_return(zone: Zone) -> None:
    digest = zone.publish("1.0.0")
    zone.promote("1.0.0")
    state = zone.registry.revoke("default", [digest], zone.officer)
    assert state.pointer.target is None
    assert state.pointer.revoked == (digest,)
    with pytest.raises(RegistryError) as info:
        zone.promote("1.0.0")
    assert code_of(info) == "REGISTRY_REVOKED"
    zone.publish("1.0.1")
    assert zone.promote("1.0.1").pointer.revoked == (digest,), "a later promotion keeps the revocation"


def test_revoking_another_version_leaves_the_served_one(zone: Zone) -> None:
    zone.publish("1.0.0")
    other = zone.publish("0.9.0")
    zone.promote("1.0.0")
    state = zone.registry.revoke("default", [other], zone.officer)
    assert state.pointer.target is not None
    assert state.pointer.target.version == "1.0.0"


def test_two_officers_at_once_do_not_both_believe_they_won(zone: Zone) -> None:
    zone.publish("1.0.0")
    zone.publish("1.1.0")

    class Interrupted(type(zone.store)):  # a home where another officer's write comes right after ours
        rival: bytes = b""

        def put(self, key: str, data: bytes, *, only_if_absent: bool = False) -> str:
            super().put(key, data, only_if_absent=only_if_absent)
            return super().put(key, self.rival) if key.startswith("channels/") else ""

    rival = zone.promote("1.1.0").envelope
    zone.pointer.unlink()
    home = Interrupted(zone.root / "registry")
    home.rival = rival
    with pytest.raises(RegistryError) as info:
        Registry(home, material=lambda: zone.material, clock=zone.clock).promote("default", "1.0.0", zone.officer)
    assert code_of(info) == "REGISTRY_CHANNEL_RACE"


def test_collecting_keeps_what_is_served_and_the_newest(zone: Zone) -> None:
    import os

    from appliance.registry.garbage import collect, collectable

    for number in range(6):
        zone.publish(f"1.{number}.0")
        for path in (zone.root / "registry" / "routers" / "default" / f"1.{number}.0").iterdir():
            os.utime(path, (number * 1000, number * 1000))
    zone.promote("1.0.0")
    zone.file("1.1.0", "artifact.sigstore.json").unlink()
    going = [one.version for one in collectable(zone.registry, keep=2, now=zone.clock())]
    assert going == ["1.1.0", "1.2.0", "1.3.0"]
    assert all(one.kept_because is None for one in collect(zone.registry, keep=2, now=zone.clock()))
    assert [one.version for one in zone.registry.versions()] == ["1.0.0", "1.4.0", "1.5.0"]


def test_a_publication_under_way_is_not_collected(zone: Zone) -> None:
    from appliance.registry.garbage import collectable

    zone.publish("1.0.0")
    zone.file("1.0.0", "artifact.sigstore.json").unlink()
    assert collectable(zone.registry, keep=1, now=zone.clock()) == []
    zone.clock.advance(days=3)
    assert [one.version for one in collectable(zone.registry, keep=1, now=zone.clock())] == ["1.0.0"]


def test_a_forged_channel_does_not_decide_what_is_deleted(zone: Zone) -> None:
    from appliance.registry.garbage import collect

    zone.publish("1.0.0")
    zone.store.put("channels/default.json", b"{}")
    with pytest.raises(ApplianceError):
        collect(zone.registry, keep=1, now=zone.clock())
    assert len(zone.registry.versions()) == 1


FOREIGN = ("channels/Default.json", "channels/a/b.json", "channels/x..y.json", "channels/.json")


def test_what_lies_under_a_name_that_no_channel_can_have_is_no_channel(zone: Zone) -> None:
    """Whoever can write one object must not be able to stop every follower with it."""
    zone.publish("1.0.0")
    zone.promote("1.0.0")
    for key in FOREIGN:
        zone.store.put(key, b"{}")
    assert zone.registry.channels() == ["default"]


def test_collecting_goes_on_past_what_is_nothing_of_ours(zone: Zone) -> None:
    from appliance.registry.garbage import collect

    for version in ("1.0.0", "1.1.0"):
        zone.publish(version)
    for key in ("routers/Alien/1/x", "routers/default/0.9/odd name"):
        path = zone.root / "registry" / key
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    zone.clock.advance(days=3)
    found = {(one.version.name, one.version.version): one for one in collect(zone.registry, keep=0, now=zone.clock())}
    assert found["default", "1.0.0"].kept_because is None
    assert found["default", "1.1.0"].kept_because is None
    assert "REGISTRY_NAME" in str(found["Alien", "1"].kept_because)
    assert "REGISTRY_NAME" in str(found["default", "0.9"].kept_because)


def test_a_channel_goes_on_after_its_signer_was_given_up(zone: Zone, zone_trust: tuple) -> None:
    """The next officer counts on from the disowned pointer; hosts that followed it follow on, restarted or not."""
    second = zone_trust[1]("import-officer", identity="import-officer-2@appliance.internal")
    zone.publish("1.0.0")
    zone.publish("1.1.0")
    zone.promote("1.0.0")
    zone.registry.revoke("default", [zone.registry.fetch("default", "1.1.0").digest], zone.officer)
    running, restarted = zone.host("running"), zone.host("restarted")
    running.poll()
    restarted.poll()
    zone.give_up("import-officer@appliance.internal")
    with pytest.raises(ApplianceError) as info:
        zone.registry.channel("default")
    assert code_of(info) == "TRUST_ROLE"
    honest = signed(router_files("default", "2.0.0", payload=b"checked"), second)
    zone.registry.publish(honest, name="default", version="2.0.0")
    state = zone.registry.promote("default", "2.0.0", second)
    assert state.pointer.epoch == 3
    assert len(state.pointer.revoked) == 1
    again = zone.host("restarted")
    again.boot()
    with pytest.raises(ApplianceError) as info:
        running.poll()  # what it serves is judged anew, and given up
    assert code_of(info) == "TRUST_ROLE"
    for host in (running, again):
        assert host.poll().artifact.digest == honest.digest


def test_a_pointer_whose_signer_was_given_up_is_not_renewed(zone: Zone, zone_trust: tuple) -> None:
    zone.publish("1.0.0")
    zone.promote("1.0.0")
    zone.give_up("import-officer@appliance.internal")
    second = zone_trust[1]("import-officer", identity="import-officer-2@appliance.internal")
    with pytest.raises(RegistryError) as info:
        zone.registry.renew("default", second)
    assert code_of(info) == "REGISTRY_NOT_FOUND"


def test_what_nobody_signed_is_nothing_to_count_on_from(zone: Zone) -> None:
    zone.publish("1.0.0")
    zone.promote("1.0.0")
    document = json.loads(zone.pointer.read_bytes())
    statement = json.loads(base64.b64decode(document["statement"]))
    document["statement"] = base64.b64encode(json.dumps({**statement, "epoch": 2**40}).encode()).decode()
    zone.pointer.write_text(json.dumps(document))
    with pytest.raises(ApplianceError) as info:
        zone.promote("1.0.0")
    assert code_of(info).startswith("TRUST_")


def planted(zone: Zone, signer, **changes) -> None:
    """Another's signature on the channel's words, or on some of them changed, put where the pointer lies."""
    state = zone.registry.current("default")
    assert state is not None
    zone.pointer.write_bytes(channels.seal(state.pointer.model_copy(update=changes), signer))


@pytest.mark.parametrize("role", ["producer", "zone-host", "release-signer"])
def test_whoever_never_moved_channels_is_nothing_to_count_on_from(zone: Zone, zone_trust: tuple, role: str) -> None:
    """An insider who can write to the registry must not end a channel's counting, nor make it forget revocations."""
    zone.publish("1.0.0")
    zone.promote("1.0.0")
    planted(zone, zone_trust[1](role), epoch=channels.MAX_EPOCH)
    for act in (lambda: zone.promote("1.0.0"), lambda: zone.registry.renew("default", zone.officer)):
        with pytest.raises(ApplianceError) as info:
            act()
        assert code_of(info) == "TRUST_ROLE"


def test_after_a_foreign_pointer_a_hosts_own_note_puts_the_channel_right(zone: Zone, zone_trust: tuple) -> None:
    """What the catalogue advises: nothing is lost while one host remembers."""
    zone.publish("1.0.0")
    zone.promote("1.0.0")
    zone.host().poll()
    planted(zone, zone_trust[1]("producer"), epoch=channels.MAX_EPOCH)
    zone.pointer.write_bytes((zone.root / "host" / "channels" / "default.seen.json").read_bytes())
    assert zone.promote("1.0.0").pointer.epoch == 2
    assert zone.host().poll() is not None


def test_a_signature_that_was_taken_back_is_counted_on_from_while_its_officer_goes_on(zone: Zone) -> None:
    zone.publish("1.0.0")
    digest = zone.promote("1.0.0").digest
    denied = zone.material.policy.denied.model_copy(update={"digests": (digest,)})
    zone.material = replace(zone.material, policy=zone.material.policy.model_copy(update={"denied": denied}))
    with pytest.raises(ApplianceError) as info:
        zone.registry.channel("default")
    assert code_of(info) == "TRUST_DENIED"
    assert zone.promote("1.0.0").pointer.epoch == 2


@pytest.mark.parametrize(
    "full",
    [{"epoch": channels.MAX_EPOCH}, {"revoked": tuple(f"{n:064x}" for n in range(channels.MAX_REVOKED))}],
    ids=["epoch", "revocations"],
)
def test_a_channel_at_the_end_of_counting_says_so(zone: Zone, full: dict) -> None:
    digest = zone.publish("1.0.0")
    zone.promote("1.0.0")
    planted(zone, zone.officer, **full)
    with pytest.raises(RegistryError) as info:
        zone.registry.revoke("default", [digest], zone.officer)
    assert code_of(info) == "REGISTRY_CHANNEL_EXHAUSTED"
    other = zone.registry.promote("default", "1.0.0", zone.officer, channel="default-2")
    assert other.pointer.epoch == 1


def test_a_pointer_to_more_bytes_than_an_artifact_has_is_refused_before_one_is_fetched(zone: Zone) -> None:
    zone.publish("1.0.0")
    target = zone.promote("1.0.0").pointer.target
    assert target is not None
    half = channels.FileRecord(sha256="0" * 64, size_bytes=MAX_BYTES // 2)
    allowed = {"files": {"a.onnx": half, "b.onnx": half}}
    channels.Target.model_validate({**target.model_dump(), **allowed})
    files = {**allowed["files"], "c.onnx": half}
    planted(zone, zone.officer, epoch=2, target=target.model_copy(update={"files": files}))
    host = zone.host()
    with pytest.raises(ApplianceError) as info:
        host.poll()
    assert code_of(info) == "DOCUMENT_SCHEMA"
    assert not list((zone.root / "host" / "partial").iterdir())


class Changing(DirectoryStore):
    """A home that shows another pointer at every look, under the same tag, until an officer writes one."""

    def __init__(self, root: Path, faces: list[bytes]) -> None:
        super().__init__(root)
        self._pointer, self._faces = root / "channels" / "default.json", faces
        self._pointer.write_bytes(faces[0])
        self.reads = 0

    def get(self, key: str, *, max_bytes: int, unless: str | None = None) -> Blob | None:
        blob = super().get(key, max_bytes=max_bytes, unless=unless)
        if key.startswith("channels/") and self._faces:
            self.reads += 1
            self._pointer.write_bytes(self._faces[self.reads % len(self._faces)])
            return Blob(blob.data, "tag") if blob is not None else None
        return blob

    def put(self, key: str, data: bytes, *, only_if_absent: bool = False) -> str:
        self._faces = []
        return super().put(key, data, only_if_absent=only_if_absent)


@pytest.fixture
def two_faces(zone: Zone, zone_trust: tuple) -> tuple[Signer, bytes, bytes]:
    """The next officer; the pointer of one who was given up, and the same signature over somebody's own words."""
    second = zone_trust[1]("import-officer", identity="import-officer-2@appliance.internal")
    zone.publish("1.0.0")
    zone.promote("1.0.0")
    state = zone.registry.revoke("default", [zone.publish("0.9.0")], zone.officer)
    words = state.pointer.model_copy(update={"epoch": 2**40, "revoked": ()})
    statement = documents.write_json(words.model_dump(mode="json", by_alias=True))
    bundle = json.loads(channels.split(state.envelope)[1])
    digest = base64.b64encode(hashlib.sha256(statement).digest()).decode()
    bundle["messageSignature"]["messageDigest"]["digest"] = digest
    zone.give_up("import-officer@appliance.internal")
    honest = signed(router_files("default", "2.0.0", payload=b"checked"), second)
    zone.registry.publish(honest, name="default", version="2.0.0")
    return second, state.envelope, channels.envelope(statement, documents.write_json(bundle))


def test_what_is_counted_on_from_is_what_was_judged_and_not_what_lies_there_next(zone: Zone, two_faces: tuple) -> None:
    officer, disowned, forged = two_faces
    home = Changing(zone.root / "registry", [disowned, forged])
    registry = Registry(home, material=lambda: zone.material, clock=zone.clock)
    pointer = registry.promote("default", "2.0.0", officer).pointer
    assert (pointer.epoch, len(pointer.revoked)) == (3, 1)
    assert home.reads == 2, "one was judged; of the other, right before writing, the tag alone counts"


def test_a_home_that_shows_the_strangers_words_first_is_refused_and_nothing_is_written(
    zone: Zone, two_faces: tuple
) -> None:
    officer, disowned, forged = two_faces
    home = Changing(zone.root / "registry", [forged, disowned])
    registry = Registry(home, material=lambda: zone.material, clock=zone.clock)
    with pytest.raises(ApplianceError) as info:
        registry.promote("default", "2.0.0", officer)
    assert code_of(info) == "TRUST_SIGNATURE"
    assert home.reads == 1
    assert zone.pointer.read_bytes() == disowned
