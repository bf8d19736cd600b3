"""The signed configuration goes forward only, and goes on after an officer has left."""

from __future__ import annotations

import pytest

from appliance import documents
from appliance.errors import ApplianceError
from appliance.registry.cache import Cache
from appliance.registry.channel import envelope
from appliance.registry.directory import DirectoryStore
from appliance.registry.signed_config import Configs, SignedSource, config_key, mirror_config
from tests.unit.registry.conftest import Zone

FIRST, SECOND = "import-officer@appliance.internal", "import-officer-2@appliance.internal"


@pytest.fixture
def configs(zone: Zone) -> Configs:
    return Configs(zone.store, material=lambda: zone.material, clock=zone.clock)


def code_of(info: pytest.ExceptionInfo[ApplianceError]) -> str:
    return info.value.code


def test_a_configuration_goes_on_after_its_officer_was_given_up(zone: Zone, configs: Configs, zone_trust) -> None:
    """The next officer publishes, and hosts that had followed the first one follow."""
    second, host = zone_trust[1]("import-officer", identity=SECOND), Cache(zone.root / "host")
    configs.publish("gateway", {}, zone.officer)
    configs.follow("gateway", host)
    zone.give_up(FIRST)
    for act in (lambda: configs.current("gateway"), lambda: configs.accept("gateway", None, host)):
        with pytest.raises(ApplianceError) as info:
            act()
        assert code_of(info) == "TRUST_ROLE"
    assert configs.publish("gateway", {}, second).statement.epoch == 2
    assert configs.follow("gateway", host).statement.epoch == 2


def test_a_host_does_not_forget_a_configurations_epoch_when_its_officer_leaves(
    zone: Zone, configs: Configs, zone_trust
) -> None:
    second, host = zone_trust[1]("import-officer", identity=SECOND), Cache(zone.root / "host")
    older = configs.publish("gateway", {}, zone.officer)
    configs.publish("gateway", {}, second)
    configs.follow("gateway", host)
    zone.give_up(SECOND)
    zone.store.put(config_key("gateway"), older.envelope)
    with pytest.raises(ApplianceError) as info:
        configs.follow("gateway", host)
    assert code_of(info) == "REGISTRY_CHANNEL_ROLLBACK"
    assert configs.follow("gateway", Cache(zone.root / "fresh")).statement.epoch == 1


def test_whoever_never_published_configurations_is_nothing_to_count_on_from(
    zone: Zone, configs: Configs, zone_trust
) -> None:
    configs.publish("gateway", {}, zone.officer)
    statement = configs.current("gateway").statement.model_copy(update={"epoch": 2**53})
    words = documents.write_json(statement.model_dump(mode="json", by_alias=True))
    zone.store.put(config_key("gateway"), envelope(words, zone_trust[1]("producer").sign_statement(words)))
    with pytest.raises(ApplianceError) as info:
        configs.publish("gateway", {}, zone.officer)
    assert code_of(info) == "TRUST_ROLE"


def test_a_sidecar_that_forgot_how_far_it_had_come_does_not_take_the_volume_back(zone: Zone, configs: Configs) -> None:
    (zone.root / "volume").mkdir()
    volume = DirectoryStore(zone.root / "volume")
    older = configs.publish("gateway", {}, zone.officer)
    newer = configs.publish("gateway", {}, zone.officer)
    assert len(mirror_config(configs, "gateway", Cache(zone.root / "host"), volume)[1]) == 2
    zone.store.put(config_key("gateway"), older.envelope)
    with pytest.raises(ApplianceError) as info:
        mirror_config(configs, "gateway", Cache(zone.root / "empty"), volume)
    assert code_of(info) == "REGISTRY_CHANNEL_ROLLBACK"
    assert (zone.root / "volume" / config_key("gateway")).read_bytes() == newer.envelope
    volume.put(config_key("gateway"), b"{}")
    assert mirror_config(configs, "gateway", Cache(zone.root / "empty"), volume)[0] == older, "it counts for nothing"


def test_a_configuration_that_is_withheld_is_a_problem_and_one_that_never_was_is_none(
    zone: Zone, configs: Configs
) -> None:
    source = SignedSource(zone.store, configs, "gateway", Cache(zone.root / "host"))
    assert source.newest() == 0
    configs.publish("gateway", {}, zone.officer)
    assert source.newest() == 1
    (zone.root / "registry" / config_key("gateway")).rename(zone.root / "withheld")
    for _ in range(2):
        with pytest.raises(ApplianceError) as info:
            source.newest()
        assert code_of(info) == "REGISTRY_NOT_FOUND"
    restarted = SignedSource(zone.store, configs, "gateway", Cache(zone.root / "host"))
    assert restarted.newest() == 1, "what was seen is known"
    with pytest.raises(ApplianceError):
        restarted.newest()
