"""appliance.yaml: what is refused, and that what lies in the release and the documentation is true."""

from pathlib import Path

import pytest
import yaml

from appliance import documents, settings
from appliance.errors import ConfigError
from appliance.gateway import describe, litellm_config

ROOT = Path(__file__).parents[3]
DEFAULTS = ROOT / "bundle/defaults"


def default() -> dict:
    return documents.read_yaml((DEFAULTS / "appliance.yaml").read_bytes(), what="default")


def parse(document: dict) -> settings.Settings:
    return settings.parse(document, base=DEFAULTS)


def test_the_default_configuration_is_valid_and_its_groups_exist():
    chosen = settings.load(DEFAULTS / "appliance.yaml")
    config = litellm_config.read(chosen)
    assert set(config.groups) == {"chat"}
    assert config.weights == {"chat": {"small": 3, "large": 1}}


def test_relative_paths_count_from_the_folder_of_the_file():
    assert parse(default()).litellm.master_key_file == DEFAULTS / "secrets/master.key"


def test_the_documentation_is_generated_from_the_model():
    assert (ROOT / "docs/configuration.md").read_text() == describe.markdown()


def test_every_key_is_described():
    for path, model in describe._sections(settings.Settings, ""):
        for name, field in model.model_fields.items():
            is_section = describe._type(field.annotation) == "section"
            assert field.description or is_section, f"{path}.{name}"


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("listen", "host"), "0.0.0.0", "tls is required"),
        (("listen", "port"), 70000, "listen.port"),
        (("listen", "workers"), 0, "listen.workers"),
        (("routing", "groups", "chat", "router"), None, "strategy ml needs a router"),
        (("routing", "groups", "chat", "router"), "other", "names router other"),
        (("routing", "groups", "chat", "weights"), {"small": -1}, "weights.small"),
        (("routing", "groups", "chat", "weights"), {"small": 0.5}, "weights.small"),
        (("routing", "encoders"), [], "need at least one folder below encoders"),
        (("trust",), None, "nothing unverified is ever loaded"),
        (("routing", "deadline_ms"), 0, "deadline_ms"),
        (("lockdown",), {"allow": ["host-without-port"]}, "is not host:port"),
        (("access",), {"keys": [{"name": "master", "sha256": "0" * 64}]}, "the name master is taken"),
        (("access",), {"keys": [{"name": "app", "sha256": "plain"}]}, "access.keys.0.sha256"),
        (("telemetry",), {"otlp_endpoint": "collector"}, "otlp_endpoint"),
        (("schema_version",), 2, "schema_version"),
        (("litellm", "inline"), {"model_list": []}, "exactly one of config and inline"),
    ],
)
def test_a_value_that_cannot_be_served_is_refused_by_name(path, value, says):
    document = default()
    place = document
    for part in path[:-1]:
        place = place[part]
    place[path[-1]] = value
    with pytest.raises(ConfigError) as refusal:
        parse(document)
    assert refusal.value.code == "CONFIG_INVALID"
    assert says in refusal.value.cause


def litellm(model_list=None, **sections) -> settings.Settings:
    document = default()
    document["litellm"].pop("config")
    document["litellm"]["inline"] = {
        "model_list": model_list
        if model_list is not None
        else [
            {"model_name": "chat", "litellm_params": {"model": "openai/s"}, "model_info": {"id": "small"}},
            {"model_name": "chat", "litellm_params": {"model": "openai/l"}, "model_info": {"id": "large"}},
        ],
        **sections,
    }
    return parse(document)


def entry(id_="small", **parameters) -> dict:
    return {"model_name": "chat", "litellm_params": {"model": "openai/s", **parameters}, "model_info": {"id": id_}}


@pytest.mark.parametrize(
    ("chosen", "code"),
    [
        ({"general_settings": {"database_url": "postgresql://x"}}, "CONFIG_LITELLM"),
        ({"general_settings": {"master_key": "sk-1234"}}, "CONFIG_LITELLM"),
        ({"router_settings": {"enable_pre_call_checks": True}}, "CONFIG_LITELLM"),
        ({"router_settings": {"enable_tag_filtering": True}}, "CONFIG_LITELLM"),
        ({"router_settings": {"routing_strategy": "latency-based-routing"}}, "CONFIG_LITELLM"),
        ({"litellm_settings": {"callbacks": ["otel"]}}, "CONFIG_LITELLM"),
        ({"model_list": []}, "CONFIG_LITELLM"),
        ({"model_list": [{"model_name": "chat"}]}, "CONFIG_LITELLM"),
        ({"model_list": [entry(api_key="sk-live-secret"), entry("large")]}, "CONFIG_LITELLM"),
        ({"model_list": [entry(api_key="os.environ/NOWHERE"), entry("large")]}, "CONFIG_LITELLM"),
        ({"model_list": [entry(api_base="os.environ/NOWHERE"), entry("large")]}, "CONFIG_LITELLM"),
        ({"model_list": [entry(api_base="https://me:sk-live-secret@host/v1"), entry("large")]}, "CONFIG_LITELLM"),
        ({"model_list": [entry(extra_headers={"X-Api-Key": "sk-live-secret"}), entry("large")]}, "CONFIG_LITELLM"),
        ({"router_settings": {"redis_host": "redis", "redis_password": "sk-live-secret"}}, "CONFIG_LITELLM"),
        ({"litellm_settings": {"cache_params": {"password": "sk-live-secret"}}}, "CONFIG_LITELLM"),
        ({"include": ["more.yaml"]}, "CONFIG_LITELLM"),
        ({"model_list": [entry(weight=-1), entry("large")]}, "CONFIG_LITELLM"),
        ({"model_list": [entry(), entry()]}, "CONFIG_GROUP"),
        ({"model_list": [entry(), entry("other")]}, "CONFIG_GROUP"),
        ({"model_list": [{"model_name": "chat", "litellm_params": {"model": "m"}}]}, "CONFIG_GROUP"),
        ({"router_settings": {"fallbacks": [{"chat": ["chta"]}]}}, "CONFIG_GROUP"),
        ({"router_settings": {"context_window_fallbacks": [{"chta": ["chat"]}]}}, "CONFIG_GROUP"),
        ({"litellm_settings": {"default_fallbacks": ["chta"]}}, "CONFIG_GROUP"),
        ({"litellm_settings": {"fallbacks": ["chat"]}}, "CONFIG_LITELLM"),
        ({"litellm_settings": {"fallbacks": 3}}, "CONFIG_LITELLM"),
    ],
)
def test_what_litellm_could_not_serve_safely_here_is_refused(chosen, code):
    with pytest.raises(ConfigError) as refusal:
        litellm_config.read(litellm(**chosen))
    assert refusal.value.code == code
    assert "sk-live-secret" not in str(refusal.value.as_dict())


@pytest.mark.parametrize(
    "chosen",
    [
        {"fallbacks": [{"chat": ["large", "other"]}, {"*": ["chat"]}], "model_group_alias": {"other": "chat"}},
        {"fallbacks": [{"chat": [{"model": "chat", "messages": []}]}], "default_fallbacks": ["chat"]},
        {"fallbacks": None},
    ],
)
def test_a_fallback_names_a_group_a_deployment_or_another_name_of_one(chosen):
    litellm_config.read(litellm(router_settings=chosen))


@pytest.mark.parametrize("name", ["timeout", "fallbacks", "mock_response", "specific_deployment", "priority"])
def test_an_operator_does_not_admit_a_field_that_steers_litellm(name):
    chosen = litellm()
    admitting = chosen.model_copy(update={"access": settings.Access(fields=("vllm_xargs", name))})
    with pytest.raises(ConfigError) as refusal:
        litellm_config.read(admitting)
    assert (refusal.value.code, refusal.value.evidence["fields"]) == ("CONFIG_LITELLM", [name])
    litellm_config.read(chosen.model_copy(update={"access": settings.Access(fields=("vllm_xargs", "n_probs"))}))


def test_the_honest_twin_is_accepted_with_secrets_by_name_and_weights_in_proportion():
    named = entry(api_key="os.environ/VLLM_KEY", api_base="os.environ/VLLM_KEY", weight=0.25)
    chosen = litellm([named, entry("large", api_key="none", bos_token="<s>", max_tokens="9", weight=0.75)])
    listed = chosen.litellm.model_copy(update={"secrets": {"VLLM_KEY": DEFAULTS / "vllm.key"}})
    chosen = chosen.model_copy(update={"litellm": listed})
    config = litellm_config.read(chosen)
    assert config.weights["chat"] == {"small": 3, "large": 1}, "the operator's weights win"
    assert config.document["model_list"][0]["litellm_params"]["api_key"] == "os.environ/VLLM_KEY", "unchanged"


def test_fractions_become_whole_numbers_of_the_same_proportion():
    assert litellm_config._whole({"a": 0.25, "b": 0.75}) == {"a": 250, "b": 750}
    assert litellm_config._whole({"a": 2.0, "b": 1}) == {"a": 2, "b": 1}


def test_yaml_and_json_of_the_same_document_are_the_same_settings(tmp_path):
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(default()))
    (tmp_path / "b.yaml").write_bytes(documents.write_json(default()))
    assert settings.load(tmp_path / "a.yaml") == settings.load(tmp_path / "b.yaml")
