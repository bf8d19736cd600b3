# ruff: noqa: E501 (tables and small programs read better in one line)
"""What a client may say: a list of fields for each API, each of one kind, and nothing that steers LiteLLM."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.gateway import edge, fields
from appliance.gateway.access import Principal

MASTER = Principal("master")
TURN = [{"role": "user", "content": "hello"}]
TOOL = {
    "type": "function",
    "function": {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True},
}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}}
ODD = [True, -1, 0.3, "x", [5], ["x"], [[]], [None], [{}], {}, {"a": 0.3}, {"type": 5}, {"a": {"b": 1}}, 2**63]
HONEST = {
    "chat/completions": {
        "messages": [
            {"role": "system", "content": "be kind", "name": "s"},
            {"role": "user", "content": [{"type": "text", "text": "look"}, PICTURE]},
            {"role": "assistant", "content": None,
             "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "4"},
        ],
        "temperature": 0.2, "top_p": 1, "max_tokens": 5, "n": 1, "stream": True, "stop": ["a"], "seed": 7,
        "stream_options": {"include_usage": True}, "logit_bias": {"5": -1}, "metadata": {"job": "7"}, "user": "ann",
        "tools": [TOOL], "tool_choice": "auto", "response_format": {"type": "json_object"}, "logprobs": None,
        "reasoning_effort": "low", "top_k": 40, "min_p": 0.1, "chat_template_kwargs": {"enable_thinking": False},
        "structured_outputs": {"regex": "a+"},
    },
    "completions": {"prompt": [[1, 2], [3]], "max_tokens": 5, "logprobs": 1, "echo": False},
    "embeddings": {"input": ["a", "b"], "encoding_format": "float", "dimensions": 8},
    "responses": {"input": [{"role": "user", "content": "x"}], "instructions": "y", "store": False,
                  "reasoning": {"effort": "low"}, "text": {"format": {"type": "text"}},
                  "tools": [{"type": "function", "name": "f", "parameters": {}}]},
    "messages": {"messages": TURN, "max_tokens": 5, "system": [{"type": "text", "text": "x"}], "stop_sequences": ["x"],
                 "metadata": {"user_id": "ann"}, "tools": [{"name": "f", "input_schema": {}}, {"type": "bash_20250124", "name": "bash"}]},
    "messages/count_tokens": {"messages": TURN, "system": "x"},
    "rerank": {"query": "q", "documents": ["a", {"text": "b"}], "top_n": 1},
}  # fmt: skip


def names(text: str) -> list[str]:
    return text.split()


# what each would do: the address, the credentials or the TLS of the upstream, another model, a faked or stored answer,
# code and files of the gateway, a time limit that makes an upstream look dead, a fallback around the key's groups
DANGEROUS = names("""api_base base_url api_key api_version organization custom_llm_provider extra_headers extra_query extra_body
default_headers ssl_verify client timeout stream_timeout request_timeout force_timeout num_retries max_retries retry_policy
fallbacks context_window_fallback_dict fallback_depth model_alias_map model_list specific_deployment deployment_id
model_info user_config litellm_credential_name litellm_metadata mock_response mock_tool_calls mock_timeout cache caching
cache_key ttl no-log tags guardrails callbacks success_callback logger_fn prompt_id prompt_variables custom_prompt_dict
input_cost_per_token proxy_server_request secret_fields metadata_ _excluded_deployment_ids priority drop_params
allowed_openai_params langfuse_host s3_endpoint_url aws_role_name vertex_credentials use_litellm_proxy web_search_options
mcp_servers background conversation prompt_environment litellm_call_id silent_model max_budget rpm weight routing_strategy
chat_template logits_processors""")  # fmt: skip


def check(api: str, **body) -> dict:
    return edge.checked(json.dumps({"model": "chat", **body}).encode(), MASTER, f"/v1/{api}")


def refused(api: str, **body) -> edge.Refused:
    with pytest.raises(edge.Refused) as refusal:
        check(api, **body)
    assert refusal.value.status == 400
    return refusal.value


@pytest.mark.parametrize("api", fields.APIS)
def test_an_honest_request_of_every_api_passes(api):
    assert check(api, **HONEST[api])["model"] == "chat"
    assert edge.checked(json.dumps({"model": "chat", **HONEST[api]}).encode(), MASTER, f"/{api}")


@pytest.mark.parametrize("name", DANGEROUS)
def test_what_steers_litellm_is_no_field_of_any_api(name):
    for api, honest in HONEST.items():
        refusal = refused(api, **honest, **{name: {"a": 0.3}})
        assert (refusal.code, refusal.param) == ("GATEWAY_FIELD", name)


@pytest.mark.parametrize(("api", "name"), [(api, name) for api, known in fields.APIS.items() for name in known])
def test_every_field_is_of_one_kind_and_null_says_nothing(api, name):
    honest = {"model": "chat", **HONEST[api]}
    kind = fields.APIS[api][name]
    wrong = [value for value in ODD if not kind.holds(value)]
    assert wrong, f"{name} takes everything"
    for value in wrong:
        body = json.dumps({**honest, name: value}).encode()
        with pytest.raises(edge.Refused) as refusal:
            edge.checked(body, MASTER, f"/v1/{api}")
        assert refusal.value.param == name
        assert refusal.value.code == ("invalid_request_error" if name == "model" else "GATEWAY_FIELD_TYPE")
    if name not in {"model", fields.NEEDED.get(api)}:
        edge.checked(json.dumps({**honest, name: None}).encode(), MASTER, f"/v1/{api}")


@pytest.mark.parametrize(
    "message",
    [
        5, {}, {"role": ""}, {"role": 5, "content": "x"}, {"role": "user", "content": 5}, {"role": "user", "content": [5]},
        {"role": "user", "content": [{"type": 5}]}, {"role": "user", "content": [{"type": "text", "text": 5}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": 5}}]}, {"role": "user", "name": 5},
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "http://192.0.2.1/secret"}}]},
        {"role": "developer"}, {"role": "user", "content": None}, {"role": "user", "content": [{}]}, {"role": "user", "content": ["x"]},
        {"role": "user", "content": [{"type": "image_url"}]}, {"role": "user", "content": [{"type": "hologram"}]}, {"role": "user", "content": [{"type": "text"}]},
        {"role": "assistant", "tool_calls": 5}, {"role": "assistant", "tool_calls": [5]},
        {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]},
    ],
)  # fmt: skip
def test_a_message_of_another_form_is_the_clients_error(message):
    assert refused("chat/completions", messages=[message]).code == "GATEWAY_FIELD_TYPE"


@pytest.mark.parametrize(
    "turn",
    [
        5, {"role": "user"}, {"role": "tool", "content": "x"}, {"role": "user", "content": None}, {"role": "user", "content": [{}]},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}, {"role": ["user"], "content": "x"},
        {"role": "user", "content": [{"type": "text", "text": 5}]},
    ],
)  # fmt: skip
def test_a_turn_of_another_form_is_the_clients_error_too(turn):
    for api in ("messages", "messages/count_tokens"):
        assert refused(api, **{**HONEST[api], "messages": [turn]}).param == "messages"


@pytest.mark.parametrize(
    "tool",
    [
        5, {"type": "function", "function": 5}, {"type": "function", "function": {"name": 5}}, {"type": 5},
        {"type": "mcp", "server_label": "x", "server_url": "http://192.0.2.1"}, {"type": "web_search_preview"},
        {"type": "file_search", "vector_store_ids": ["x"]}, {"type": "code_interpreter", "container": "x"},
    ],
)  # fmt: skip
def test_a_tool_that_somebody_else_would_run_is_refused(tool):
    for api in ("chat/completions", "responses", "messages"):
        assert refused(api, **{**HONEST[api], "tools": [tool]}).code == "GATEWAY_FIELD_TYPE"


def test_a_body_as_deep_as_allowed_passes_and_one_level_more_does_not():
    def nested(levels: int) -> object:
        return {"a": nested(levels - 1)} if levels else {}

    inside = fields.MAX_DEPTH - 2
    assert check("chat/completions", messages=TURN, prediction=nested(inside))
    assert "nested" in str(refused("chat/completions", messages=TURN, prediction=nested(inside + 1)))
    assert not fields.too_deep({"messages": TURN})


def test_an_operator_admits_what_else_his_model_servers_take():
    body = json.dumps({"model": "chat", "messages": TURN, "vllm_xargs": {"a": 1}}).encode()
    document = edge.checked(body, MASTER, "/v1/chat/completions", ("vllm_xargs",))
    assert orjson.loads(edge.handed_on(document, "/v1/chat/completions")) == json.loads(body)
    with pytest.raises(edge.Refused) as refusal:
        edge.checked(body, MASTER, "/v1/chat/completions", ("vllm_other",))
    assert (refusal.value.code, refusal.value.param) == ("GATEWAY_FIELD", "vllm_xargs")


def test_messages_are_needed_where_the_api_needs_them():
    assert refused("chat/completions").code == "GATEWAY_FIELD_TYPE"
    assert refused("messages", messages=None).param == "messages"
    assert check("embeddings")


@pytest.mark.parametrize("body", [{}, {"prompt": None}, {"prompt": []}])
def test_a_completion_needs_a_prompt_that_litellm_does_not_take_for_a_broken_server(body):
    refusal = refused("completions", **body)
    assert (refusal.code, refusal.param) == ("GATEWAY_FIELD_TYPE", "prompt")


def test_metadata_reaches_litellm_one_level_below_what_it_takes_orders_from():
    document = check("chat/completions", messages=TURN, metadata={"tags": "x", "guardrails": "none"})
    handed = orjson.loads(edge.handed_on(document, "/v1/chat/completions"))
    assert handed == {**document, "metadata": {"client": {"tags": "x", "guardrails": "none"}}}
    document = check("messages", **HONEST["messages"])
    assert orjson.loads(edge.handed_on(document, "/v1/messages")) == document


def test_of_a_name_given_twice_the_one_that_was_checked_is_handed_on():
    body = b'{"model": "secret", "messages": [{"role": "user", "content": "x"}], "model": "chat"}'
    document = edge.checked(body, Principal("team", frozenset({"chat"})), "/v1/chat/completions")
    assert edge.handed_on(document, "/chat/completions").count(b"model") == 1


def test_litellm_sees_of_the_headers_what_it_needs_and_no_order():
    given = [
        (b"authorization", b"Bearer x"), (b"x-litellm-timeout", b"abc"), (b"x-litellm-num-retries", b"1000"),
        (b"openai-organization", b"o"), (b"x-litellm-tags", b"t"), (b"cookie", b"c"), (b"baggage", b"session.id=1"),
        (b"x-forwarded-for", b"10.0.0.1"), (b"content-length", b"99"), (b"transfer-encoding", b"chunked"),
        (b"langfuse_trace_id", b"x"), (b"anthropic-beta", b"x"), (b"traceparent", b"00-1-1-01"),
    ]  # fmt: skip
    assert edge.forwarded(given, b"{}") == [
        (b"authorization", b"Bearer x"), (b"traceparent", b"00-1-1-01"),
        (b"content-type", b"application/json"), (b"content-length", b"2"),
    ]  # fmt: skip


@given(
    st.sampled_from(sorted(fields.APIS)),
    st.data(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=12,
    ),
)
def test_no_value_of_any_field_breaks_the_check(api, data, value):
    name = data.draw(st.sampled_from(sorted(fields.APIS[api])))
    try:
        document = check(api, **{**HONEST[api], name: value} if name != "model" else HONEST[api])
    except edge.Refused as refused_:
        assert refused_.status == 400
    else:
        assert orjson.loads(edge.handed_on(document, f"/v1/{api}"))
