"""Which deployments are said to be free: those that neither their operator nor LiteLLM's price list charges for."""

import pytest

from appliance.gateway.prices import FREE, PriceList, all_marked, marked

PRICES = PriceList(
    {
        "gpt-4o": {"litellm_provider": "openai", "input_cost_per_token": 1e-6},
        "deepinfra/meta-llama/Llama-3": {"litellm_provider": "deepinfra", "input_cost_per_token": 1e-7},
        "dashscope/qwen-plus": {"litellm_provider": "dashscope", "tiered_pricing": [{"range": [0, 1]}]},
        "ollama/mistral": {"litellm_provider": "ollama", "input_cost_per_token": 0.0},
        "anything": {"input_cost_per_second": 0.1},
    }
)


def entry(model="openai/small", info=None, **parameters):
    return {
        "model_name": "chat",
        "litellm_params": {"model": model, "api_base": "http://10.0.0.1/v1", **parameters},
        "model_info": {"id": "a", **(info or {})},
    }


@pytest.mark.parametrize(
    "model", ["openai/small", "hosted_vllm/meta-llama/Llama-3", "openai/meta-llama/Llama-3", "ollama/mistral"]
)
def test_a_model_of_an_own_machine_is_free(model):
    given = entry(model)
    assert marked(given, PRICES) == {**given, "model_info": {"id": "a", **FREE}}
    assert given == entry(model)  # the operator's own document is not changed


@pytest.mark.parametrize(
    "model",
    ["openai/gpt-4o", "gpt-4o", "openai/GPT-4o", "deepinfra/meta-llama/Llama-3", "dashscope/qwen-plus",
     "openai/anything", "text-completion-openai/gpt-4o", "openai/*", "ft:gpt-4o:own"],
)  # fmt: skip
def test_a_model_that_the_price_list_may_charge_for_keeps_its_price(model):
    assert marked(entry(model), PRICES) == entry(model)


def test_the_provider_counts_that_a_deployment_names_beside_its_model():
    assert marked(entry("own/gpt-4o", custom_llm_provider="openai"), PRICES)["model_info"] == {"id": "a"}
    assert "input_cost_per_token" in marked(entry("own/gpt-4o"), PRICES)["model_info"]


@pytest.mark.parametrize(
    "said",
    [
        {"input_cost_per_token": 0.5},
        {"info": {"output_cost_per_token": 0}},
        {"info": {"base_model": "gpt-4o"}},
        {"base_model": "gpt-4o"},
        {"info": {"off_peak_pricing": {"from": 1}}},
    ],
)
def test_whatever_the_operator_says_of_a_price_stays_as_it_is(said):
    assert marked(entry(**said), PRICES) == entry(**said)


def test_of_a_document_nothing_but_the_prices_changes():
    document = {"model_list": [entry(), entry("openai/gpt-4o")], "router_settings": {"num_retries": 2}}
    got = all_marked(document, PRICES)
    assert got["router_settings"] == {"num_retries": 2}
    assert [FREE.items() <= one["model_info"].items() for one in got["model_list"]] == [True, False]
    assert all_marked({"general_settings": {}}, PRICES)["model_list"] == []


def test_where_models_without_a_price_are_refused_none_is_given_one():
    document = {"model_list": [entry()], "litellm_settings": {"block_requests_for_models_without_pricing": True}}
    assert all_marked(document, PRICES) == document
