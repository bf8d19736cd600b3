# ruff: noqa: E501 (tables and small programs read better in one line)
"""What a client sees of every failure behind the gateway, and of every attempt to steer it: status, body and code.

Each fault has a model server and a group of its own, so that no test depends on what another did to a server's health.
"""

import contextlib
import hashlib
import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import openai
import pytest

from tests.support.gateway import deployment, gateway
from tests.support.upstream import upstream

pytestmark = pytest.mark.server
PROMPT = "my secret question 4711"
TURN = [{"role": "user", "content": PROMPT}]
TEAM = "sk-team-" + "k" * 30
MODES = ("error", "hang", "rubbish", "shape", "locked", "refuse", "cut", "begins", "busy", "missing")
BREAKING = """
from litellm.integrations.custom_logger import CustomLogger
class Breaking(CustomLogger):
    async def async_pre_call_hook(self, user_api_key_dict, cache, data, call_type):
        if data.get("user") == "break":
            raise KeyError("my secret question 4711")
instance = Breaking()
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    home = tmp_path_factory.mktemp("told")
    (home / "breaking_callback.py").write_text(BREAKING)
    access = {
        "keys": [{"name": "team", "sha256": hashlib.sha256(TEAM.encode()).hexdigest(), "groups": ["chat", "refuse"]}],
        "fields": ["vllm_xargs", "n_probs"],
    }
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(upstream(name)) for name in ("chat", "other", "closed", "breaks", *MODES)}
        for mode in MODES:
            servers[mode].mode = mode
        servers["busy"].retry_after = "30"
        nobody = stack.enter_context(socket.socket())
        nobody.bind(
            ("127.0.0.1", 0)
        )  # bound and not listening: whoever connects is refused, and nobody else gets the port
        gone = deployment("gone", servers["chat"])
        gone["litellm_params"]["api_base"] = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1"
        gone["model_info"] = {"id": "gone"}
        deployments = [
            deployment("chat", servers["chat"]), deployment("chat", servers["other"]), deployment("secret", servers["closed"]),
            deployment("breaks", servers["breaks"]), gone,
            *(deployment(mode, servers[mode], **({"timeout": 1} if mode == "hang" else {})) for mode in MODES),
        ]  # fmt: skip
        litellm = {
            "router_settings": {"num_retries": 0},
            "litellm_settings": {"callbacks": ["breaking_callback.instance"]},
        }
        made = stack.enter_context(
            gateway(
                home / "gateway",
                deployments,
                tls=False,
                access=access,
                litellm=litellm,
                environment={"PYTHONPATH": str(home)},
            )
        )
        yield made, servers


def ask(
    running, path: str = "/v1/chat/completions", *, key: str | None = None, headers=None, params=None, **body
) -> httpx.Response:
    made, _ = running
    given = {"model": "chat", "messages": TURN, **body}
    carried = {"authorization": f"Bearer {key or made.key}", **(headers or {})}
    return made.client.post(
        path, json={k: v for k, v in given.items() if v is not None}, headers=carried, params=params, timeout=120
    )


def failed(response: httpx.Response, status: int, code: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error["code"] == code
    assert error["request_id"] == response.headers["x-appliance-request-id"]
    assert error["message"]
    assert error["remedy"]
    for said in ("PROMPT-ECHO", "the upstream is broken", "prisma", "127.0.0.1", PROMPT, "Traceback"):
        assert said not in response.text
    return error


# --- whose fault ------------------------------------------------------------------------------------------------------

BODIES = {
    "/v1/chat/completions": {},
    "/v1/messages": {"max_tokens": 5},
    "/v1/responses": {"messages": None, "input": PROMPT},
    "/v1/embeddings": {"messages": None, "input": PROMPT},
    "/v1/completions": {"messages": None, "prompt": PROMPT},
}


@pytest.mark.parametrize("path", BODIES)
def test_every_api_is_answered_by_a_model_server_that_is_well(running, path):
    response = ask(running, path, **BODIES[path])
    assert response.status_code == 200, response.text
    named = response.headers["x-appliance-deployment"]
    assert named in {"chat", "other"}
    assert path == "/v1/embeddings" or f"answer-of-{named}" in response.text


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(("group", "status", "code"), [
    ("gone", 502, "GATEWAY_UPSTREAM"), ("error", 502, "GATEWAY_UPSTREAM"), ("rubbish", 502, "GATEWAY_UPSTREAM"), ("cut", 502, "GATEWAY_UPSTREAM"), ("locked", 502, "GATEWAY_UPSTREAM"),
    ("hang", 504, "GATEWAY_UPSTREAM_TIMEOUT"), ("busy", 429, "GATEWAY_UPSTREAM_BUSY"), ("missing", 404, "GATEWAY_UPSTREAM_UNKNOWN"),
])  # fmt: skip
def test_a_model_servers_failure_is_told_as_such_and_again_while_it_is_let_alone(running, path, group, status, code):
    failed(ask(running, path, model=group, **BODIES[path]), status, code)


@pytest.mark.parametrize("group", ["gone", "error", "begins", "rubbish", "shape", "locked"])
def test_a_stream_that_cannot_begin_is_an_error_and_no_stream(running, group):
    failed(ask(running, model=group, stream=True), 502, "GATEWAY_UPSTREAM")


@pytest.mark.parametrize("stream", [False, True])
def test_a_busy_model_servers_wish_to_be_left_alone_for_a_while_reaches_the_client(running, stream):
    response = ask(running, model="busy", stream=stream)
    failed(response, 429, "GATEWAY_UPSTREAM_BUSY")
    assert response.headers["retry-after"] == "30"


def test_a_group_all_of_whose_servers_rest_is_still_asked_and_told_of_by_the_same_code(running):
    for _ in range(8):
        failed(ask(running, model="error"), 502, "GATEWAY_UPSTREAM")
    health = running[0].status()["groups"]["error"]["deployments"][0]["health"]
    assert health["state"] != "closed", "it rests, and nothing else is there to ask"


def test_a_stream_that_breaks_off_ends_with_an_error_and_without_done(running):
    made, servers = running
    serving = servers["breaks"]
    serving.held.set()  # the first chunk, and no more until it has arrived
    lines = []
    with made.client.stream(
        "POST", "/v1/chat/completions", json={"model": "breaks", "messages": TURN, "stream": True}
    ) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: "):
                lines.append(line.removeprefix("data: "))
                serving.mode = "cut"
                serving.held.clear()
    assert "answer-of-breaks" in lines[0]
    assert "[DONE]" not in lines
    error = json.loads(lines[-1])["error"]
    assert error["message"]
    assert not any(PROMPT in line for line in lines)


def test_what_a_model_server_refuses_reaches_the_client_as_its_own_error_and_counts_against_nobody(running):
    made, servers = running
    for path, body in BODIES.items():
        for _ in range(4):
            response = ask(running, path, model="refuse", **body)
            assert response.status_code == 400
            assert "too many tokens" in response.text
    deployed = made.status()["groups"]["refuse"]["deployments"][0]
    assert not deployed["health"] or deployed["health"]["state"] == "closed"
    assert servers["refuse"].requests


def test_an_error_in_an_operators_callback_is_ours_and_told_without_its_words(running):
    failed(ask(running, user="break"), 500, "GATEWAY_UNHANDLED")
    assert ask(running, user="whole").status_code == 200


def test_an_unknown_model_and_an_unknown_key_are_refused_before_any_server_is_asked(running):
    response = ask(running, model="nothing")
    assert response.status_code == 400
    assert "nothing" in response.json()["error"]["message"]
    assert (ask(running, key=TEAM, model="nothing").status_code, ask(running, key="sk-" + "x" * 40).status_code) == (
        403,
        401,
    )


def test_the_stock_client_raises_what_it_raises_for_openai(running):
    made, _ = running
    client = openai.OpenAI(
        base_url=f"{made.url}/v1", api_key=made.key, max_retries=0, http_client=httpx.Client(trust_env=False)
    )
    with pytest.raises(openai.InternalServerError) as broken:
        client.chat.completions.create(model="error", messages=TURN)
    assert (broken.value.status_code, broken.value.code) == (502, "GATEWAY_UPSTREAM")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="chat", messages=TURN, extra_body={"timeout": 1})
    assert (refused.value.code, refused.value.param) == ("GATEWAY_FIELD", "timeout")


def test_the_log_names_the_true_exception_and_neither_prompt_nor_prisma(running):
    made, _ = running
    request_id = failed(ask(running, model="rubbish"), 502, "GATEWAY_UPSTREAM")["request_id"]
    lines = made.wait_until(
        lambda: [json.loads(line) for line in made.log.read_text().splitlines() if request_id in line]
    )
    assert any(name.endswith("JSONDecodeError") for name in lines[0]["exceptions"])
    text = made.log.read_text()
    for said in (PROMPT, "PROMPT-ECHO", "ModuleNotFoundError", "No module named"):
        assert said not in text


# --- who steers -------------------------------------------------------------------------------------------------------


class Trap:
    """Listens, and counts who came."""

    def __enter__(self):
        trap = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                trap.came.append(self.path)
                self.send_error(404)

            do_POST = do_GET  # noqa: N815 (the server's own name)

            def log_message(self, *_) -> None:
                return

        self.came: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize("steering", [
    {"api_base": "TRAP"}, {"base_url": "TRAP"}, {"user_config": {"model_list": []}}, {"langfuse_host": "TRAP"},
    {"mock_response": "faked"}, {"fallbacks": ["secret"]}, {"context_window_fallback_dict": {"chat": "secret"}},
    {"model_alias_map": {"chat": "secret"}}, {"specific_deployment": True}, {"extra_body": {"messages": []}},
    {"extra_headers": {"x": "TRAP"}}, {"ssl_verify": False}, {"custom_llm_provider": "ollama"}, {"timeout": 0.0001},
    {"num_retries": 1000}, {"stream": True, "stream_timeout": {"a": 0.3}}, {"metadata": {"guardrails": []}}, {"cache": {"ttl": "x"}},
    {"tools": [{"type": "mcp", "server_label": "x", "server_url": "TRAP"}]}, {"input_cost_per_token": "x"}, {"priority": 0},
])  # fmt: skip
def test_a_client_steers_nothing_by_its_body(running, steering):
    made, servers = running
    with Trap() as trap:
        response = ask(running, key=TEAM, **json.loads(json.dumps(steering).replace("TRAP", trap.url)))
        assert response.status_code == 400, response.text
        assert response.json()["error"]["code"] in {"GATEWAY_FIELD", "GATEWAY_FIELD_TYPE"}
        assert response.json()["error"]["param"] in steering
    assert trap.came == []
    assert servers["closed"].requests == []
    assert all(
        not d["health"] or d["health"]["state"] == "closed" for d in made.status()["groups"]["chat"]["deployments"]
    )


def test_a_client_steers_nothing_by_headers_or_query(running):
    _, servers = running
    headers = {
        "x-litellm-timeout": "abc", "x-litellm-stream-timeout": "0.0001", "x-litellm-num-retries": "x", "x-litellm-tags": "a", "x-litellm-model-id": "closed",
        "openai-organization": "stolen", "x-litellm-mcp-servers": "x", "x-forwarded-host": "x", "langfuse_trace_id": "x", "x-litellm-api-base": "http://192.0.2.1",
    }  # fmt: skip
    response = ask(
        running,
        key=TEAM,
        headers=headers,
        params={"api-version": "x", "model": "secret", "timeout": "0.0001"},
        user="ann",
        metadata={"tags": "x", "job": "7"},
    )
    assert response.status_code == 200, response.text
    server = servers[response.headers["x-appliance-deployment"]]
    assert server.headers[-1].get("openai-organization") is None
    assert server.requests[-1] == {"model": server.name, "messages": TURN}
    assert servers["closed"].requests == []


def test_what_is_meant_for_the_model_server_gets_there(running):
    _, servers = running
    meant = {"temperature": 0.2, "top_k": 5, "min_p": 0.1, "chat_template_kwargs": {"enable_thinking": False}, "seed": 7, "stop": ["x"],
             "vllm_xargs": {"a": [1]}, "n_probs": 5,
             "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}], "logit_bias": {"5": 1}}  # fmt: skip
    response = ask(running, **meant)
    assert response.status_code == 200, response.text
    got = servers[response.headers["x-appliance-deployment"]].requests[-1]
    assert {name: got.get(name) for name in meant} == meant
