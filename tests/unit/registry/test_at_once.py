"""Officers and collectors who act at the same moment: whoever loses is told, and nothing that counts is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.artifact import SIGNATURE_NAME
from appliance.cli import serving
from appliance.errors import ApplianceError, RegistryError
from appliance.registry.directory import DirectoryStore
from appliance.registry.garbage import collect
from appliance.registry.registry import Registry
from appliance.trust.signing import Signer
from tests.support.artifacts import signed
from tests.unit.registry.conftest import Zone


class Meanwhile(DirectoryStore):
    """A home at which something else happens right after the first write or removal of a certain object."""

    def __init__(self, root: Path, at: str, act: Callable[[], object]) -> None:
        super().__init__(root)
        self._at, self._act = at, act

    def _happen(self, key: str) -> None:
        if key.endswith(self._at):
            act, self._act = self._act, lambda: None
            act()

    def put(self, key: str, data: bytes, *, only_if_absent: bool = False) -> str:
        tag = super().put(key, data, only_if_absent=only_if_absent)
        self._happen(key)
        return tag

    def delete(self, key: str) -> None:
        super().delete(key)
        self._happen(key)


def registry_at(zone: Zone, at: str, act: Callable[[], object]) -> Registry:
    home = Meanwhile(zone.root / "registry", at, act)
    return Registry(home, material=lambda: zone.material, clock=zone.clock)


class Hesitant:
    """An officer before whose signature another officer acts."""

    def __init__(self, signer: Signer, act: Callable[[], object]) -> None:
        self._signer, self._act = signer, act

    def sign_statement(self, payload: bytes) -> bytes:
        self._act()
        return self._signer.sign_statement(payload)


@pytest.fixture
def two(zone: Zone) -> Zone:
    """Two versions, the older one served."""
    zone.publish("1.0.0")
    zone.publish("1.1.0")
    zone.promote("1.0.0")
    return zone


def test_a_revocation_is_not_written_over_by_a_promotion_that_was_drawn_up_before(two: Zone) -> None:
    digest = two.registry.digest_of("default", "1.0.0")
    hesitant = Hesitant(two.officer, lambda: two.registry.revoke("default", [digest], two.officer))
    with pytest.raises(RegistryError) as info:
        two.registry.promote("default", "1.1.0", hesitant)
    assert info.value.code == "REGISTRY_CHANNEL_RACE"
    state = two.registry.channel("default")
    assert state is not None
    assert state.pointer.revoked == (digest,)
    assert two.promote("1.1.0").pointer.epoch == 3


def test_a_revocation_that_was_written_over_all_the_same_is_noticed(two: Zone) -> None:
    """The last moment that no look before can cover: the other's pointer comes right after ours was read back."""
    digest, before = two.registry.digest_of("default", "1.0.0"), two.pointer.read_bytes()
    late = two.promote("1.1.0").envelope
    two.pointer.write_bytes(before)
    two.registry.revoke("default", [digest], two.officer)
    two.registry.check_revoked("default", [digest])
    two.pointer.write_bytes(late)
    with pytest.raises(RegistryError) as info:
        two.registry.check_revoked("default", [digest])
    assert info.value.code == "REGISTRY_CHANNEL_RACE"


def test_a_version_that_is_promoted_while_it_is_collected_stays(two: Zone) -> None:
    two.publish("1.2.0")
    two.promote("1.2.0")
    registry = registry_at(two, f"1.0.0/{SIGNATURE_NAME}", lambda: write_pointer(two))

    def write_pointer(zone: Zone) -> None:
        zone.pointer.write_bytes(pointing_to_it)

    two.pointer.unlink()
    pointing_to_it = two.promote("1.0.0").envelope
    two.pointer.unlink()
    done = {one.version.version: one.kept_because for one in collect(registry, keep=1, now=two.clock())}
    assert done == {"1.0.0": "it was promoted meanwhile", "1.1.0": None}
    assert two.host().poll().artifact.files["index.safetensors"] == b"1.0.0"


def test_a_version_that_is_collected_while_it_is_promoted_is_missed_at_once(two: Zone) -> None:
    registry = registry_at(two, "default.json", lambda: two.file("1.1.0", SIGNATURE_NAME).unlink())
    with pytest.raises(RegistryError) as info:
        registry.promote("default", "1.1.0", two.officer)
    assert info.value.code == "REGISTRY_INCOMPLETE"
    assert "publish" in info.value.remedy


def test_a_channel_that_cannot_be_read_while_collecting_costs_no_version(two: Zone) -> None:
    two.publish("1.2.0")
    two.promote("1.2.0")
    registry = registry_at(two, f"1.0.0/{SIGNATURE_NAME}", lambda: two.pointer.write_bytes(b"{}"))
    with pytest.raises(ApplianceError) as info:
        collect(registry, keep=1, now=two.clock())
    assert info.value.code == "REGISTRY_CHANNEL_MALFORMED"
    assert {one.version: one.complete for one in two.registry.versions()} == dict.fromkeys(
        ("1.0.0", "1.1.0", "1.2.0"), True
    )


def test_other_bytes_in_a_versions_place_are_not_revoked_in_its_stead(two: Zone) -> None:
    """A registry that swaps the content would have the officer revoke something harmless."""
    two.file("1.0.0").write_bytes(b"harmless")
    with pytest.raises(ApplianceError) as info:
        two.registry.digest_of("default", "1.0.0")
    assert info.value.code == "TRUST_OMS_FILES"


def test_what_a_given_up_officer_admitted_can_still_be_revoked(two: Zone, zone_trust: tuple) -> None:
    digest = two.registry.digest_of("default", "1.0.0")
    two.give_up("import-officer@appliance.internal")
    assert two.registry.digest_of("default", "1.0.0") == digest


def test_one_channel_that_cannot_be_changed_does_not_spare_the_others(
    two: Zone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "SETTLE_S", 0.0)
    two.registry.promote("default", "1.0.0", two.officer, channel="canary")
    two.store.put("channels/broken.json", b"{}")
    digest = two.registry.digest_of("default", "1.0.0")
    with pytest.raises(ApplianceError) as info:
        serving._revoke_on(two.registry.channels(), digest, two.registry, two.officer)
    assert info.value.code == "REGISTRY_CHANNEL_MALFORMED"
    assert info.value.evidence["not_revoked_on"] == ["broken"]
    assert info.value.evidence["revoked_on"] == ["canary", "default"]
    for name in ("canary", "default"):
        assert two.registry.channel(name).pointer.target is None
    states = serving._revoke_on(["canary", "default"], digest, two.registry, two.officer)
    assert [state.pointer.epoch for state in states] == [3, 3]


def test_an_encoder_is_revoked_like_a_router(zone: Zone) -> None:
    from tests.support import routing

    encoder = signed(routing.encoder_files(), zone.officer)
    zone.registry.publish(encoder, name="words", version="1")
    assert serving.kind_of(zone.registry, "words", "1") == "encoder"
    assert zone.registry.digest_of("words", "1", kind="encoder") == encoder.digest
    assert serving.kind_of(zone.registry, "default", "1.0.0") == "router"
