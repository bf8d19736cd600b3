"""A gateway that follows a channel of the registry, and one whose zone denies what it serves."""

from datetime import UTC, datetime, timedelta

import pytest

from appliance import settings
from appliance.gateway.active import Slot
from appliance.gateway.loading import Loader
from appliance.gateway.sources import open_watch
from appliance.registry import sidecar
from appliance.registry.directory import DirectoryStore
from appliance.registry.registry import Registry
from appliance.registry.trust_source import TrustSource
from appliance.trust.authority import Authority
from appliance.trust.ceremony import Revocation, revoke
from appliance.trust.store import TrustStore
from tests.support.ports import free_port
from tests.support.routing import encoder_files, router_files, sign, zone
from tests.support.small_authority import SmallAuthority
from tests.support.trust import make_authority

LABELS = {"a": "openai/small", "b": "openai/large"}


@pytest.fixture
def here(tmp_path):
    made = zone(tmp_path / "zone", make_authority(tmp_path / "ca"), labels=LABELS)
    (tmp_path / "zone/registry").mkdir()
    return made


def registry(here) -> Registry:
    source = TrustSource(here.directory / "trust")
    return Registry(DirectoryStore(here.directory / "registry"), material=source.material, clock=source.now)


def promote(here, version: str, **options) -> str:
    made = here.artifact(version=version, **options)
    home = registry(here)
    home.publish(made, name="default", version=version)
    home.promote("default", version, here.authority.signer("import-officer"))
    return made.digest


def watch(here, *, directory=False, **router):
    sections = here.sections(router=router)
    if not directory:
        sections["routing"]["routers"]["default"].pop("directory")
        default = {"registry": {"home": "directory", "path": "registry"}, "channel": "default"}
        sections["routing"]["routers"]["default"] |= default | router
    litellm = {"inline": {"model_list": []}, "master_key_file": "key"}
    document = {"schema_version": 1, "state_dir": "state", "litellm": litellm, **sections}
    chosen = settings.parse(document, base=here.directory)
    return open_watch(chosen, Slot("default"), chosen.routing.routers["default"], Loader(chosen))


def test_the_gateway_serves_what_the_channel_points_to_and_follows_it(here):
    first = promote(here, "1.0.0")
    made = watch(here)
    made.first()
    assert (made.slot.current.digest, made.slot.current.origin) == (first, "registry")
    assert not made.look(), "nothing new"
    second = promote(here, "2.0.0", swapped=True)
    assert made.look()
    assert made.slot.current.digest == second
    assert made.describe()["channel"]["epoch"] == 2


def test_a_dead_registry_is_shown_and_serving_goes_on_even_over_a_restart(here):
    digest = promote(here, "1.0.0")
    made = watch(here)
    made.first()
    (here.directory / "registry").rename(here.directory / "gone")
    made.look()
    assert made.slot.current.digest == digest
    assert made.slot.problem["code"].startswith("REGISTRY_")
    (here.directory / "gone").rename(here.directory / "registry")
    made.look()
    assert made.slot.problem is None
    for channel in (here.directory / "registry/channels").iterdir():
        channel.write_bytes(b"ruined")
    restarted = watch(here)
    restarted.first()
    assert restarted.slot.current.digest == digest
    assert restarted.slot.problem is not None


def test_behind_a_sidecar_the_age_is_the_registrys_and_a_fault_of_the_volume_comes_first(here):
    digest = promote(here, "1.0.0")
    volume = DirectoryStore(here.directory / "registry")
    made = watch(here)
    made.first()
    assert made.describe()["channel"]["heard_by"] == "gateway", "an officer's folder, without a sidecar"
    sidecar.leave(volume, {}, "REGISTRY_UNREACHABLE")
    made.look()
    channel = made.describe()["channel"]
    assert (channel["heard_by"], channel["contact_age_s"], channel["problem"]) == (
        "sidecar", None, "REGISTRY_UNREACHABLE",
    )  # fmt: skip
    long_ago = datetime.now(UTC) - timedelta(days=2)
    sidecar.leave(volume, {"default": sidecar.heard(long_ago, "REGISTRY_TIMEOUT")})
    (here.directory / "registry/channels/default.json").write_bytes(b"ruined")
    made.look()
    channel = made.describe()["channel"]
    assert 2 * 86400 <= channel["contact_age_s"] < 3 * 86400
    assert channel["problem"] not in {None, "REGISTRY_TIMEOUT"}
    assert made.slot.current.digest == digest


def test_a_volume_that_is_mounted_after_the_start_is_followed_and_meanwhile_what_was_kept_is_served(here):
    digest = promote(here, "1.0.0")
    watch(here).first()
    (here.directory / "registry").rename(here.directory / "unmounted")
    made = watch(here)
    made.first()
    assert made.slot.current.digest == digest
    assert made.slot.problem["code"].startswith("REGISTRY_")
    (here.directory / "unmounted").rename(here.directory / "registry")
    second = promote(here, "2.0.0", swapped=True)
    assert made.look()
    assert made.slot.current.digest == second


def test_a_setting_that_is_mended_while_the_registry_is_away_brings_back_what_was_kept(here, caplog):
    digest = promote(here, "1.0.0")
    watch(here).first()
    for folder in ("registry", "trust"):
        (here.directory / folder).rename(here.directory / f"{folder}-away")
    made = watch(here)
    made.first()
    assert made.slot.current is None
    assert not made.look()
    assert made.slot.problem["code"].startswith("TRUST_")
    assert [record.message for record in caplog.records] == ["router update refused"], "said once"
    (here.directory / "trust-away").rename(here.directory / "trust")
    made.look()
    assert made.slot.current.digest == digest
    assert made.slot.problem["code"].startswith("REGISTRY_")


@pytest.fixture
def unloadable(here):
    """1.0.0 has served; 2.0.0, of an encoder that this host does not have, was refused."""
    first = promote(here, "1.0.0")
    made = watch(here)
    made.first()
    files = encoder_files()
    other = {**files, "encoder.yaml": files["encoder.yaml"].replace(b"tiny", b"tinz")}
    officer = here.authority.signer("import-officer")
    newer = sign(router_files(labels=LABELS, encoder=other, version="2.0.0"), officer)
    registry(here).publish(newer, name="default", version="2.0.0")
    registry(here).promote("default", "2.0.0", officer)
    made.look()
    assert (made.slot.current.digest, made.slot.problem["code"]) == (first, "GATEWAY_ENCODER_MISSING")
    assert made.describe()["last_known_good"]["digest"] == first
    return first


@pytest.mark.parametrize("registry_lives", [True, False])
def test_what_served_survives_a_restart_where_the_channels_newer_version_cannot_be_loaded(
    here, unloadable, registry_lives
):
    if not registry_lives:
        (here.directory / "registry").rename(here.directory / "gone")
    restarted = watch(here)
    restarted.first()
    assert (restarted.slot.current.digest, restarted.slot.current.origin) == (unloadable, "last-known-good")
    assert restarted.slot.problem is not None
    third = promote(here, "3.0.0", swapped=True) if registry_lives else unloadable
    restarted.look()
    assert restarted.slot.current.digest == third


def test_where_static_routing_is_wanted_the_last_known_good_is_told_and_not_served(here, unloadable):
    restarted = watch(here, on_bad_update="static")
    restarted.first()
    assert restarted.slot.current is None
    assert restarted.describe()["last_known_good"]["digest"] == unloadable


@pytest.mark.parametrize("revoked", ["1.0.0", "2.0.0"], ids=["the kept one", "the one pointed to"])
def test_what_the_channel_took_back_does_not_return_as_last_known_good(here, unloadable, revoked):
    digest = registry(here).fetch("default", revoked).digest
    registry(here).revoke("default", [digest], here.authority.signer("import-officer"))
    restarted = watch(here)
    restarted.first()
    assert restarted.slot.current is None
    (here.directory / "registry").rename(here.directory / "gone")
    again = watch(here)
    again.first()
    assert again.slot.current is None
    assert again.describe()["last_known_good"] is None


def test_a_revoked_version_stops_serving_whatever_the_setting_says(here):
    digest = promote(here, "1.0.0")
    made = watch(here, on_bad_update="keep-last-good")
    made.first()
    registry(here).revoke("default", [digest], here.authority.signer("import-officer"))
    made.look()
    assert made.slot.current is None
    assert made.slot.problem["code"] == "GATEWAY_CHANNEL_WITHDRAWN"


@pytest.mark.parametrize("directory", [True, False])
def test_what_the_zones_trust_denies_stops_serving_without_a_restart(here, directory):
    digest = here.put(version="1.0.0").digest
    promote(here, "1.0.0")
    made = watch(here, directory=directory)
    made.first()
    assert made.slot.current.digest == digest
    now = datetime.now(UTC)
    revoke(Authority.open(here.authority.path), Revocation(digests=(digest,)), now=now)
    TrustStore.open(here.directory / "trust").refresh(here.authority.repository, now=now)
    made.look()
    made.look()
    assert made.slot.current is None
    assert made.slot.problem["code"] == "TRUST_DENIED"


def test_the_breaker_of_a_registry_out_of_reach_is_shown_until_a_probe_may_pass(here):
    promote(here, "1.0.0")
    (here.directory / "ca.pem").write_bytes(SmallAuthority().pem)
    credentials = here.directory / "credentials.yaml"
    credentials.touch(0o600)
    credentials.write_text("access_key: a\nsecret_key: s\n")
    far = {
        "home": "s3", "endpoint": f"127.0.0.1:{free_port()}", "bucket": "registry", "ca_file": "ca.pem",
        "credentials_file": "credentials.yaml", "attempts": 1, "breaker_threshold": 2, "breaker_pause_s": 0.001,
    }  # fmt: skip
    made = watch(here, registry=far)
    made.first()
    assert made.describe()["channel"]["breaker"]["state"] == "closed"
    made.look()
    shown = made.describe()["channel"]["breaker"]
    assert (shown["state"], shown["opened_count"]) == ("open", 1)
    assert shown["last_reason"].startswith("REGISTRY_")
    made.look()
    assert made.describe()["channel"]["breaker"]["opened_count"] == 2, "a half-open probe went out, in vain"


def test_a_folder_has_no_breaker(here):
    promote(here, "1.0.0")
    made = watch(here)
    made.first()
    assert made.describe()["channel"]["breaker"] is None


def test_a_router_comes_from_one_place(here):
    from appliance.errors import ConfigError

    with pytest.raises(ConfigError) as refusal:
        watch(here, directory=True, registry={"home": "directory", "path": "registry"}, channel="default")
    assert "exactly one of directory and registry" in refusal.value.cause
