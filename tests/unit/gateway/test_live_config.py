"""Live rows beside the files: what a gateway admits, and the configuration both make together."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import settings as operator_settings
from appliance.errors import ConfigError
from appliance.gateway import litellm_config
from appliance.gateway.live_config import Rows
from appliance.registry.live import LiveConfig, assemble, difference

FILES: dict[str, Any] = {
    "schema_version": 1,
    "state_dir": "state",
    "litellm": {
        "inline": {
            "model_list": [
                {
                    "model_name": "ground",
                    "litellm_params": {"model": "openai/ground", "api_base": "https://ground.zone:8000/v1"},
                    "model_info": {"id": "ground"},
                }
            ]
        },
        "master_key_file": "master.key",
        "secrets": {"SMALL_KEY": "small.key"},
    },
    "access": {"keys": [{"name": "filed", "sha256": "a" * 64, "groups": ["ground"]}]},
    "trust": {"store": "trust"},
    "routing": {"encoders": ["encoder"], "groups": {"ground": {"strategy": "round-robin"}}},
    "live": {
        "postgres": {"host": "db.zone", "ca_file": "ca.pem"},
        "registry": {
            "home": "s3",
            "endpoint": "minio.zone:9000",
            "bucket": "registry",
            "ca_file": "ca.pem",
            "credentials_file": "credentials.yaml",
        },
        "destinations": ["*.models.zone:8000", "192.0.2.7:9000", "[2001:db8::1]:9000"],
    },
}
DEPLOYMENT = {
    "id": "small",
    "model_group": "chat",
    "model": "openai/small",
    "api_base": "https://a.models.zone:8000/v1",
}


@pytest.fixture(scope="module")
def rows() -> Rows:
    found = operator_settings.parse(FILES, base=Path("/etc/appliance"))
    return Rows(found, litellm_config.read(found))


def judged(rows: Rows, **document: list[dict[str, Any]]) -> tuple[LiveConfig, list[tuple[str, str]]]:
    config = assemble(1, document, LiveConfig(), rows.host)
    return config, [(problem.key, problem.error.code) for problem in config.problems]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, None),
        ({"key_reference": "os.environ/SMALL_KEY"}, None),
        ({"api_base": "https://ground.zone:8000/v1"}, None),
        ({"api_base": "http://192.0.2.7:9000/v1"}, None),
        ({"api_base": "http://[2001:db8::1]:9000/v1"}, None),
        ({"api_base": "https://a.models.zone:8001/v1"}, "CONFIG_ROW_HOST"),
        ({"api_base": "https://models.zone.example:8000/v1"}, "CONFIG_ROW_HOST"),
        ({"api_base": "https://amodels.zone:8000/v1"}, "CONFIG_ROW_HOST"),
        ({"api_base": "https://a.models.zone:99999/v1"}, "CONFIG_ROW_HOST"),
        ({"key_reference": "os.environ/LITELLM_MASTER_KEY"}, "CONFIG_ROW_HOST"),
        ({"parameters": {"extra_body": {"url": "https://elsewhere.example/"}}}, "CONFIG_ROW_HOST"),
        ({"id": "ground"}, "CONFIG_ROW_HOST"),
        ({"model": "small"}, "REGISTRY_ROW"),
        ({"weight": -1}, "REGISTRY_ROW"),
    ],
)
def test_a_deployment_stays_within_what_the_files_allow(rows: Rows, change: dict[str, Any], code: str | None) -> None:
    row = {**DEPLOYMENT, **change}
    _, problems = judged(rows, deployment=[row])
    assert problems == ([(row["id"], code)] if code else [])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({}, None),
        ({"location": "s3://minio.zone:9000/registry/zone-b/"}, None),
        ({"location": "s3://minio.zone:9001/registry"}, "CONFIG_ROW_HOST"),
        ({"location": "s3://elsewhere:9000/registry"}, "CONFIG_ROW_HOST"),
        ({"location": "https://minio.zone:9000/registry"}, "REGISTRY_ROW"),
        ({"channel": "../x"}, "REGISTRY_ROW"),
    ],
)
def test_a_router_comes_from_the_gateways_own_server(rows: Rows, change: dict[str, Any], code: str | None) -> None:
    _, problems = judged(rows, router_source=[{"name": "default", "channel": "default", **change}])
    assert problems == ([("default", code)] if code else [])


def test_an_application_key_cannot_take_a_name_or_a_digest(rows: Rows) -> None:
    keys = [
        {"name": "one", "sha256": "b" * 64},
        {"name": "two", "sha256": "b" * 64},
        {"name": "filed", "sha256": "c" * 64},
        {"name": "other", "sha256": "a" * 64},
        {"name": "master", "sha256": "d" * 64},
    ]
    _, problems = judged(rows, application_key=keys)
    codes = {"two": "REGISTRY_ROW", **dict.fromkeys(("filed", "other", "master"), "CONFIG_ROW_HOST")}
    assert dict(problems) == codes


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("routing.deadline_ms", 40, None),
        ("routing.deadline_ms", 0, "CONFIG_ROW_HOST"),
        ("routing.deadline_ms", "40", "CONFIG_ROW_HOST"),
        ("access.max_body_bytes", True, "CONFIG_ROW_HOST"),
        ("listen.port", 1, "CONFIG_ROW_START"),
        ("no.such.thing", 1, "CONFIG_ROW_START"),
    ],
)
def test_a_setting_changes_at_run_time_or_is_said_not_to(rows: Rows, name: str, value: Any, code: str | None) -> None:
    _, problems = judged(rows, setting=[{"name": name, "value": value}])
    assert problems == ([(name, code)] if code else [])


def test_files_and_rows_make_one_configuration(rows: Rows) -> None:
    config, problems = judged(
        rows,
        deployment=[{**DEPLOYMENT, "cost": 2.5, "weight": 3}, {**DEPLOYMENT, "id": "large"}],
        router_source=[{"name": "default", "channel": "next", "location": "s3://minio.zone:9000/other/zone-b"}],
        model_group=[
            {"name": "chat", "strategy": "ml", "router": "default", "cost_weight": 0.5, "last_resort": "large"}
        ],
        application_key=[{"name": "app", "sha256": "b" * 64, "groups": ["chat"]}],
        setting=[{"name": "routing.deadline_ms", "value": 40}],
    )
    assert problems == []
    whole = rows.together(config)
    assert set(whole.config.groups) == {"ground", "chat"}
    assert whole.config.weights["chat"] == {"small": 3, "large": 1}
    group = whole.settings.routing.groups["chat"]
    assert (group.costs, group.cost_weight, group.last_resort) == ({"small": 2.5}, 0.5, "large")
    registry = whole.settings.routing.routers["default"].registry
    assert (registry.bucket, registry.prefix) == ("other", "zone-b/")  # type: ignore[union-attr]
    assert [key.name for key in whole.settings.access.keys] == ["filed", "app"]
    assert whole.settings.routing.deadline_ms == 40


def test_a_group_of_the_files_is_not_changed_by_a_row(rows: Rows) -> None:
    _, problems = judged(rows, model_group=[{"name": "ground"}])
    assert problems == [("ground", "CONFIG_ROW_HOST")]


def test_a_configuration_that_leaves_nothing_is_refused_whole() -> None:
    bare = {**FILES, "litellm": {**FILES["litellm"], "inline": {}}, "routing": {}, "access": {}}
    found = operator_settings.parse(bare, base=Path("/etc/appliance"))
    with pytest.raises(ConfigError) as info:
        Rows(found, litellm_config.read(found)).together(LiveConfig())
    assert info.value.code == "CONFIG_LIVE"


def test_paths_of_nested_sections_count_from_the_folder_of_the_file() -> None:
    slots = {"count": 2, "postgres": {"host": "db.zone", "ca_file": "ca.pem", "password_file": "db.password"}}
    live = {**FILES["live"], "registry": {**FILES["live"]["registry"], "slots": slots}}
    found = operator_settings.parse({**FILES, "live": live}, base=Path("/etc/appliance")).live
    assert found is not None
    assert found.registry is not None
    assert found.postgres is not None
    assert found.postgres.ca_file == Path("/etc/appliance/ca.pem")
    assert found.registry.slots.postgres.password_file == Path("/etc/appliance/db.password")  # type: ignore[union-attr]


IDS = st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 9), max_size=6)


@given(IDS, IDS)
def test_applying_the_difference_gives_what_is_wanted_in_the_fewest_steps(before, after) -> None:
    def config(weights: dict[str, int]) -> LiveConfig:
        listed = [{**DEPLOYMENT, "id": id_, "weight": weight} for id_, weight in weights.items()]
        return assemble(1, {"deployment": listed}, LiveConfig())

    changes = difference(config(before), config(after))
    running = dict(before)
    running |= {row.id: row.weight for row in changes.upserts["deployment"]}
    for id_ in changes.deletes["deployment"]:
        del running[id_]
    assert running == after
    assert len(changes.upserts["deployment"]) == sum(before.get(id_) != weight for id_, weight in after.items())
    assert not difference(config(after), config(after))
