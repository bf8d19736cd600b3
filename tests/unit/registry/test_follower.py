"""A host follows a channel: forward only, verified always, serving on whatever fails."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.errors import ApplianceError, FileError, RegistryError
from appliance.registry.cache import Cache
from appliance.registry.directory import DirectoryStore
from appliance.registry.follower import Follower
from appliance.registry.mirror import mirror
from appliance.registry.registry import Registry
from tests.support import routing
from tests.support.artifacts import signed
from tests.unit.registry.conftest import Zone


@pytest.fixture
def served(zone: Zone) -> Zone:
    """A zone whose channel points to 1.0.0, with 1.1.0 published."""
    zone.publish("1.0.0")
    zone.publish("1.1.0")
    zone.promote("1.0.0")
    return zone


def version_of(follower) -> str | None:
    return follower.health().version


def test_a_host_serves_what_the_channel_points_to_and_follows_it(served: Zone) -> None:
    host = served.host()
    assert host.boot() is None
    first = host.poll()
    assert first is not None
    assert first.artifact is not None
    assert first.artifact.files["index.safetensors"] == b"1.0.0"
    assert host.poll() is None, "nothing changed"
    served.promote("1.1.0")
    assert host.poll() is not None
    assert version_of(host) == "1.1.0"


def test_a_host_boots_from_its_cache_without_the_registry(served: Zone) -> None:
    served.host().poll()
    shutil.rmtree(served.root / "registry")
    again = served.host()
    booted = again.boot()
    assert booted is not None
    assert booted.artifact is not None
    with pytest.raises(RegistryError):
        again.poll()
    assert version_of(again) == "1.0.0"
    assert again.health().problem is not None


def test_days_without_the_registry_are_visible_and_serving_goes_on(served: Zone) -> None:
    host = served.host()
    host.poll()
    (served.root / "registry").rename(served.root / "away")
    served.clock.advance(days=3)
    for _ in range(2):
        with pytest.raises(RegistryError) as info:
            host.poll()
        assert info.value.code == "REGISTRY_NOT_FOUND"
    health = host.health()
    assert health.version == "1.0.0"
    assert health.contact_age_s == timedelta(days=3).total_seconds()
    assert served.host().health().contact_age_s == pytest.approx(timedelta(days=3).total_seconds()), (
        "over a restart too"
    )
    (served.root / "away").rename(served.root / "registry")
    host.poll()
    assert host.health().contact_age_s == 0
    assert host.health().problem is None


def test_an_older_pointer_is_refused_and_the_newer_goes_on(served: Zone) -> None:
    host = served.host()
    old = served.pointer.read_bytes()
    host.poll()
    served.promote("1.1.0")
    host.poll()
    served.pointer.write_bytes(old)
    with pytest.raises(RegistryError) as info:
        host.poll()
    assert info.value.code == "REGISTRY_CHANNEL_ROLLBACK"
    assert version_of(host) == "1.1.0"
    restarted = served.host()
    restarted.boot()
    with pytest.raises(RegistryError) as info:
        restarted.poll()
    assert info.value.code == "REGISTRY_CHANNEL_ROLLBACK", "the epoch is remembered over a restart"
    assert version_of(restarted) == "1.1.0"


def test_two_pointers_of_one_epoch_are_refused(served: Zone) -> None:
    host = served.host()
    host.poll()
    served.pointer.unlink()
    served.promote("1.1.0")  # epoch 1 again
    with pytest.raises(RegistryError) as info:
        host.poll()
    assert info.value.code == "REGISTRY_CHANNEL_FORK"
    assert version_of(host) == "1.0.0"


def test_a_dropped_revocation_is_refused(served: Zone) -> None:
    revoked = served.registry.fetch("default", "1.1.0").digest
    host = served.host()
    served.registry.revoke("default", [revoked], served.officer)
    host.poll()
    served.pointer.unlink()
    for _ in range(3):
        served.promote("1.0.0")  # epochs 1 to 3, without the revocation
    with pytest.raises(RegistryError) as info:
        host.poll()
    assert info.value.code == "REGISTRY_CHANNEL_UNREVOKED"


def test_a_frozen_channel_is_alarmed_and_served_on(served: Zone) -> None:
    host = served.host()
    host.poll()
    served.clock.advance(days=91)
    with pytest.raises(RegistryError) as info:
        host.poll()
    assert info.value.code == "REGISTRY_CHANNEL_EXPIRED"
    assert host.health().expired
    assert version_of(host) == "1.0.0"
    fresh = served.host("another")
    with pytest.raises(RegistryError) as info:
        fresh.poll()
    assert info.value.code == "REGISTRY_CHANNEL_EXPIRED", "a new host does not start with a frozen pointer"


def test_a_revocation_ends_serving_at_the_next_poll(served: Zone) -> None:
    host = served.host()
    host.poll()
    served.registry.revoke("default", [served.registry.fetch("default", "1.0.0").digest], served.officer)
    change = host.poll()
    assert change is not None
    assert change.artifact is None
    restarted = served.host()
    booted = restarted.boot()
    assert booted is not None
    assert booted.artifact is None


def test_a_revocation_ends_serving_even_if_its_replacement_cannot_be_fetched(served: Zone) -> None:
    host = served.host()
    host.poll()
    served.registry.revoke("default", [served.registry.fetch("default", "1.0.0").digest], served.officer)
    served.promote("1.1.0")
    served.file("1.1.0").unlink()
    with pytest.raises(RegistryError):
        host.poll()
    assert host.served is not None
    assert host.served.artifact is None
    restarted = served.host()
    restarted.boot()
    assert restarted.served is None or restarted.served.artifact is None, "nor does a restart bring it back"


def test_a_replaced_file_is_refused_even_if_its_content_is_signed(served: Zone) -> None:
    host = served.host()
    for name in ("index.safetensors", "router.yaml", "artifact.sigstore.json"):
        shutil.copy(served.file("1.1.0", name), served.file("1.0.0", name))
    with pytest.raises(RegistryError) as info:
        host.poll()
    assert info.value.code in {"REGISTRY_DIGEST", "REGISTRY_INCOMPLETE", "REGISTRY_TOO_LARGE"}
    assert host.served is None


def test_a_rotten_blob_in_the_cache_is_fetched_again(served: Zone) -> None:
    host = served.host()
    host.poll()
    for blob in (served.root / "host" / "blobs").iterdir():
        blob.chmod(0o600)
        blob.write_bytes(b"\0" * blob.stat().st_size)
    restarted = served.host()
    booted = restarted.boot()
    assert booted is not None
    assert booted.artifact is not None
    assert booted.artifact.files["index.safetensors"] == b"1.0.0"


def test_an_interrupted_transfer_with_foreign_bytes_is_started_again(served: Zone) -> None:
    state = served.registry.current("default")
    assert state is not None
    assert state.pointer.target is not None
    record = state.pointer.target.files["index.safetensors"]
    host = served.host()
    (served.root / "host" / "partial" / record.sha256).write_bytes(b"xx")
    assert host.poll() is not None
    assert list((served.root / "host" / "partial").iterdir()) == []


def test_a_failed_target_is_tried_again_at_the_next_poll(served: Zone) -> None:
    host = served.host()
    away = served.file("1.0.0").rename(served.root / "kept")
    with pytest.raises(ApplianceError):
        host.poll()
    away.rename(served.file("1.0.0"))
    assert host.poll() is not None


def test_a_mirror_is_a_registry_and_is_repaired(served: Zone, tmp_path) -> None:
    from appliance.registry.directory import DirectoryStore

    (tmp_path / "volume").mkdir()
    volume = DirectoryStore(tmp_path / "volume")
    host = served.host()
    host.poll()
    assert len(mirror(host, volume).written) == 5
    assert mirror(host, volume).written == ()
    broken = tmp_path / "volume" / "routers" / "default" / "1.0.0" / "index.safetensors"
    broken.write_bytes(b"rotten")
    assert mirror(host, volume).written == ("routers/default/1.0.0/index.safetensors",)
    assert broken.read_bytes() == b"1.0.0"


def test_a_mirror_of_nothing_is_refused(zone: Zone) -> None:
    with pytest.raises(RegistryError) as info:
        mirror(zone.host(), zone.store)
    assert info.value.code == "REGISTRY_NOTHING"


def test_collecting_the_cache_keeps_what_is_served(served: Zone) -> None:
    host = served.host()
    host.poll()
    served.promote("1.1.0")
    host.poll()
    from appliance.registry.cache import Cache

    cache = Cache(served.root / "host")
    target = host.served.state.pointer.target
    keep = frozenset(record.sha256 for record in target.files.values())
    assert len(cache.collect(keep)) == 3
    assert cache.holds(target)


def test_old_blobs_leave_the_cache_after_a_day(served: Zone) -> None:
    host = served.host()
    host.poll()
    served.clock.advance(days=2)
    served.promote("1.1.0")
    host.poll()
    kept = {path.name for path in (served.root / "host" / "blobs").iterdir()}
    assert kept == {record.sha256 for record in host.served.state.pointer.target.files.values()}


def test_a_router_that_the_refreshed_trust_denies_is_no_longer_served(served: Zone) -> None:
    from dataclasses import replace

    host = served.host()
    host.poll()
    digest = host.served.state.pointer.target.digest
    policy = served.material.policy
    denied = policy.denied.model_copy(update={"digests": (digest,)})
    honest = served.material
    served.material = replace(honest, policy=policy.model_copy(update={"denied": denied}))
    with pytest.raises(ApplianceError) as info:
        host.poll()
    assert info.value.code == "TRUST_DENIED"
    assert host.served.artifact is None
    served.material = honest
    change = host.poll()
    assert change is not None, "where the trust takes it back, it is served again"
    assert change.artifact is not None


def test_a_clock_that_the_trust_refuses_stops_news_and_not_serving(served: Zone) -> None:
    from appliance.errors import TrustError
    from appliance.registry.cache import Cache
    from appliance.registry.follower import Follower
    from appliance.registry.registry import Registry

    times = [served.clock()] * 3

    def clock():
        if times:
            return times.pop()
        raise TrustError("TRUST_CLOCK_BEHIND", "it is 1970")

    home = Registry(served.store, material=lambda: served.material, clock=served.clock)
    host = Follower(home, Cache(served.root / "h"), "default", material=lambda: served.material, clock=clock)
    assert host.poll() is not None
    times.clear()
    with pytest.raises(TrustError):
        host.poll()
    health = host.health()
    assert health.version == "1.0.0"
    assert health.problem is not None
    assert health.problem.code == "TRUST_CLOCK_BEHIND"
    assert health.contact_age_s is None


def test_an_encoder_is_published_promoted_and_followed_like_a_router(zone: Zone) -> None:
    encoder = signed(routing.encoder_files(), zone.officer)
    zone.registry.publish(encoder, name="tiny", version="1")
    zone.registry.promote("tiny", "1", zone.officer, kind="encoder")
    follower = Follower(zone.registry, Cache(zone.root / "e"), "tiny", material=lambda: zone.material, clock=zone.clock)
    served = follower.poll()
    assert served is not None
    assert served.artifact is not None
    assert (served.artifact.kind, served.artifact.digest) == ("encoder", encoder.digest)


def test_a_host_does_not_forget_how_far_it_has_come_when_an_officer_leaves(served: Zone, zone_trust: tuple) -> None:
    """The second officer revoked 1.0.0 and left; a registry that shows the first one's old pointer is not followed."""
    second = zone_trust[1]("import-officer", identity="import-officer-2@appliance.internal")
    older = served.pointer.read_bytes()
    served.registry.revoke("default", [served.registry.fetch("default", "1.0.0").digest], second)
    served.host().poll()
    served.give_up("import-officer-2@appliance.internal")
    served.pointer.write_bytes(older)
    again = served.host()
    assert again.boot() is None
    with pytest.raises(RegistryError) as info:
        again.poll()
    assert info.value.code == "REGISTRY_CHANNEL_ROLLBACK"
    assert again.served is None
    fresh = served.host("fresh")
    assert fresh.poll() is not None, "a host that has seen nothing newer follows it"


@pytest.mark.parametrize("booted", [True, False])
def test_a_host_that_boots_without_usable_trust_still_knows_how_far_it_has_come(served: Zone, booted: bool) -> None:
    older = served.pointer.read_bytes()
    served.promote("1.1.0")
    served.host().poll()
    served.pointer.write_bytes(older)
    again = served.host()
    if booted:
        trust, served.material = served.material, replace(served.material, trusted_root=b"{}")
        assert again.boot() is None
        served.material = trust  # refreshed while the host runs
    with pytest.raises(RegistryError) as info:
        again.poll()
    assert info.value.code == "REGISTRY_CHANNEL_ROLLBACK"


def test_half_a_note_leaves_the_other_one_to_remember_by(served: Zone) -> None:
    older = served.pointer.read_bytes()
    served.promote("1.1.0")
    served.host().poll()
    notes = served.root / "host" / "channels"
    (notes / "default.seen.json").write_bytes((notes / "default.seen.json").read_bytes()[:100])
    served.pointer.write_bytes(older)
    again = served.host()
    assert again.boot() is not None
    with pytest.raises(RegistryError) as info:
        again.poll()
    assert info.value.code == "REGISTRY_CHANNEL_ROLLBACK"
    served.promote("1.1.0")  # honest, and of the epoch that was seen: another pointer of it
    served.promote("1.1.0")
    assert again.poll() is not None


def test_a_full_disk_keeps_no_revoked_router_in_service(served: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    host = served.host()
    host.poll()
    served.registry.revoke("default", [served.registry.fetch("default", "1.0.0").digest], served.officer)
    keep = Cache.keep_pointer
    monkeypatch.setattr(Cache, "keep_pointer", full_disk)
    with pytest.raises(FileError) as info:
        host.poll()
    assert info.value.code == "FILE_NO_SPACE"
    assert host.served is not None
    assert host.served.artifact is None
    assert version_of(host) is None
    monkeypatch.setattr(Cache, "keep_pointer", keep)
    host.poll()
    again = served.host()
    again.boot()
    assert again.served is not None
    assert again.served.artifact is None, "as soon as there is room, the next start knows it too"


def full_disk(*_arguments: object) -> None:
    raise FileError("FILE_NO_SPACE", "no space left on device")


@pytest.mark.parametrize("failure", [FileError("FILE_NO_SPACE", "full"), FileNotFoundError(2, "gone")])
def test_news_is_not_lost_when_the_cache_cannot_be_tidied(
    served: Zone, failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object, **_options: object) -> None:
        raise failure

    host = served.host()
    host.poll()
    served.promote("1.1.0")
    monkeypatch.setattr(Cache, "collect_unused", fail)
    news = host.poll()
    assert news is not None
    assert news.artifact is not None
    assert news.artifact.files["index.safetensors"] == b"1.1.0"


def test_a_blob_that_another_worker_tidied_meanwhile_is_no_error(served: Zone, monkeypatch: pytest.MonkeyPatch) -> None:
    host = served.host()
    host.poll()
    stray = served.root / "host" / "blobs" / ("0" * 64)
    stray.write_bytes(b"")
    stat = Path.stat

    def gone(path: Path, **options: bool) -> os.stat_result:
        if path == stray:
            path.unlink(missing_ok=True)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", gone)
    Cache(served.root / "host").collect_unused(now_s=served.clock.now.timestamp())
    target = host.served.state.pointer.target
    assert Cache(served.root / "host").holds(target)


@pytest.fixture
def volume(served: Zone) -> DirectoryStore:
    (served.root / "volume").mkdir()
    return DirectoryStore(served.root / "volume")


def gateway(zone: Zone, volume: DirectoryStore, name: str) -> Follower:
    """A host that follows the shared volume."""
    home = Registry(volume, material=lambda: zone.material, clock=zone.clock)
    cache = Cache(zone.root / name)
    return Follower(home, cache, "default", material=lambda: zone.material, clock=zone.clock)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_revocation_crosses_the_volume_even_if_its_replacement_cannot_be_fetched(
    served: Zone, volume: DirectoryStore, restarted: bool
) -> None:
    sidecar, follower = served.host(), gateway(served, volume, "gateway")
    sidecar.poll()
    mirror(sidecar, volume)
    follower.poll()
    assert version_of(follower) == "1.0.0"
    served.registry.revoke("default", [served.registry.fetch("default", "1.0.0").digest], served.officer)
    served.promote("1.1.0")
    away = served.file("1.1.0").rename(served.root / "away")
    with pytest.raises(RegistryError):
        sidecar.poll()
    if restarted:
        sidecar = served.host()
        sidecar.boot()
    mirror(sidecar, volume)
    with pytest.raises(RegistryError):
        follower.poll()
    assert follower.served is not None
    assert follower.served.artifact is None
    away.rename(served.file("1.1.0"))
    sidecar.poll()
    mirror(sidecar, volume)
    assert follower.poll() is not None
    assert version_of(follower) == "1.1.0"


def test_a_sidecar_that_forgot_how_far_it_had_come_does_not_take_the_volume_back(
    served: Zone, volume: DirectoryStore
) -> None:
    older = served.pointer.read_bytes()
    served.promote("1.1.0")
    sidecar = served.host()
    sidecar.poll()
    mirror(sidecar, volume)
    newer = (served.root / "volume" / "channels" / "default.json").read_bytes()
    served.pointer.write_bytes(older)
    forgetful = served.host("empty-cache")
    forgetful.poll()
    with pytest.raises(RegistryError) as info:
        mirror(forgetful, volume)
    assert info.value.code == "REGISTRY_CHANNEL_ROLLBACK"
    assert (served.root / "volume" / "channels" / "default.json").read_bytes() == newer
    (served.root / "volume" / "channels" / "default.json").write_bytes(b"{}")
    assert "channels/default.json" in mirror(forgetful, volume).written, "what does not verify counts for nothing"
