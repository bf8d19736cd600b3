# ruff: noqa: E501 (tables and small programs read better in one line)
"""The gateway boots, routes by round-robin, explains itself and refuses what it must, as a real process."""

import json
import os
import signal
import socket
import stat

import pytest
import yaml

from tests.support.gateway import deployment, gateway, run, serve, write_config
from tests.support.ports import free_port
from tests.support.upstream import upstream


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    home = tmp_path_factory.mktemp("boot")
    nowhere = "http://127.0.0.1:9"
    hostile = {
        "Http_Proxy": nowhere, "https_PROXY": nowhere, "ALL_PROXY": nowhere, "SSL_VERIFY": "False", "OPENAI_LOG": "debug",
        "SSLKEYLOGFILE": str(home / "session.keys"), "OPENAI_API_BASE": nowhere, "DATABASE_URL": "postgresql://nowhere",
    }  # fmt: skip
    with (
        upstream("small") as small,
        upstream("large") as large,
        gateway(home, [deployment("chat", small, weight=3), deployment("chat", large)], environment=hostile) as process,
    ):
        yield process


def test_proxies_logging_and_key_files_of_the_environment_are_not_heard(running):
    assert running.chat("who is heard?").status_code == 200
    assert not (running.directory / "session.keys").exists()
    assert "openai" not in running.log.read_text()


def test_weights_of_the_local_file_decide_exactly_and_evenly(running):
    chosen = [running.chat(f"prompt {n}").headers["x-appliance-deployment"] for n in range(8)]
    assert sorted(chosen) == ["large"] * 2 + ["small"] * 6
    assert chosen[:4].count("small") == chosen[4:].count("small") == 3


def test_litellm_is_told_that_a_deployment_without_a_price_is_free(running):
    entries = json.loads((running.directory / "state" / "run" / "litellm.yaml").read_text())["model_list"]
    assert {entry["model_info"]["input_cost_per_token"] for entry in entries} == {0.0}


def test_the_answer_comes_from_the_deployment_that_the_header_names(running):
    response = running.chat("who are you?")
    assert response.status_code == 200
    named = response.headers["x-appliance-deployment"]
    assert response.json()["choices"][0]["message"]["content"].startswith(f"answer-of-{named}")
    assert response.headers["x-litellm-model-id"] == named
    assert response.headers["x-appliance-routing"] == "round-robin; success; configured_round_robin"


def test_a_stream_comes_whole_from_one_deployment(running):
    body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "stream"}]}
    with running.client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
        named = response.headers["x-appliance-deployment"]
    assert lines[-1] == "[DONE]"
    words = [(json.loads(line)["choices"] or [{"delta": {}}])[0]["delta"].get("content") or "" for line in lines[:-1]]
    assert "".join(words).split() == [f"answer-of-{named}", "w1", "w2", "w3", "w4"]


def stock_client(running):
    import httpx
    import openai

    return openai.OpenAI(
        base_url=f"{running.url}/v1", api_key=running.key, http_client=httpx.Client(verify=running.tls, trust_env=False)
    )


def test_the_stock_openai_client_needs_no_change(running):
    client = stock_client(running)
    answer = client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "hello"}])
    assert answer.choices[0].message.content.startswith("answer-of-")
    assert [model.id for model in client.models.list()] == ["chat"]
    assert client.models.retrieve("chat").id == "chat"
    assert client.completions.create(model="chat", prompt="hello").choices[0].text.startswith("answer-of-")
    assert client.embeddings.create(model="chat", input=["hello"]).data[0].embedding == [0.0, 1.0]
    assert client.responses.create(model="chat", input="hello").output_text.startswith("answer-of-")


def test_the_stock_openai_client_gets_every_stream_as_it_comes(running):
    client, turn = stock_client(running), [{"role": "user", "content": "hello"}]
    counted = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(model="chat", messages=turn, **counted))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).endswith("w1 w2 w3 w4 ")
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == [12]
    texts = client.completions.create(model="chat", prompt="hello", stream=True)
    assert "".join(chunk.choices[0].text or "" for chunk in texts).endswith("w1 w2 w3 w4 ")
    with client.responses.stream(model="chat", input="hello") as events:
        assert [event.delta for event in events if event.type == "response.output_text.delta"][1:] == [
            "w1 ",
            "w2 ",
            "w3 ",
            "w4 ",
        ]
        assert events.get_final_response().output_text.endswith("w1 w2 w3 w4")


def test_a_tool_that_the_client_runs_is_called_and_its_result_goes_back(running):
    client = stock_client(running)
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
    turns = [{"role": "user", "content": "hello"}]
    forced = {"type": "function", "function": {"name": "weather"}}
    asked = client.chat.completions.create(model="chat", messages=turns, tools=[tool], tool_choice=forced).choices[0]
    call = asked.message.tool_calls[0]
    assert (asked.finish_reason, call.function.name) == ("tool_calls", "weather")
    turns += [asked.message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    answer = client.chat.completions.create(model="chat", messages=turns, tools=[tool])
    assert answer.choices[0].message.content.startswith("answer-of-")


def test_a_decision_record_tells_what_was_chosen_among_what_and_with_which_probability(running):
    request_id = running.chat("record me").headers["x-appliance-request-id"]
    records = running.client.get("/appliance/decisions", params={"limit": 5}).json()["decisions"]
    record = next(r for r in records if r["request_id"] == request_id)
    assert record["group"] == "chat"
    assert record["candidates"] == ["small", "large"]
    assert record["propensity"] == {"small": 0.75, "large": 0.25}[record["selected"]]
    assert "record me" not in json.dumps(records)


@pytest.mark.parametrize("path", ["/", "/ui/", "/routes", "/openapi.json", "/public/model_hub", "/fallback/login",
                                  "/sso/key/generate", "/key/generate", "/health", "/config/yaml", "/v1/models/../../ui"])  # fmt: skip
def test_a_path_that_is_not_on_the_list_does_not_exist_even_with_the_master_key(running, path):
    assert running.client.get(path).status_code == 404


@pytest.mark.parametrize(
    "path", ["/v1/models", "/health/liveliness", "/health/readiness", "/appliance/live", "/appliance/ready"]
)
def test_a_path_on_the_list_is_served(running, path):
    assert running.client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/appliance/status", "/appliance/decisions"])
@pytest.mark.parametrize("authorization", ["", "Bearer sk-wrong", "Bearer", "Basic sk"])
def test_what_the_gateway_tells_of_itself_needs_the_master_key(running, path, authorization):
    assert running.client.get(path, headers={"authorization": authorization}).status_code == 401
    assert running.client.get(path).status_code == 200


def test_the_status_page_is_static_behind_a_strict_policy_and_holds_no_data(running):
    page = running.client.get("/appliance/ui", headers={"authorization": ""})
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for path in ("app.js", "facts.js", "style.css", "icon.svg"):
        assert running.client.get(f"/appliance/ui/{path}", headers={"authorization": ""}).status_code == 200
        assert f"/appliance/ui/{path}" in page.text or path == "facts.js"
    assert running.client.get("/appliance/ui/../worker.py").status_code == 404
    assert running.client.get("/appliance/ui/none.js").status_code == 404


@pytest.mark.parametrize("authorization", ["", "Bearer sk-wrong", "Bearer", "x"])
def test_a_request_without_a_valid_key_is_refused(running, authorization):
    body = {"model": "chat", "messages": []}
    response = running.client.post("/v1/chat/completions", json=body, headers={"authorization": authorization})
    assert response.status_code == 401
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"null", b'{"model": 5}', b'{"model": "chat", "messages": "x"}',
                                  b'{"model": "chat", "messages": [1]}', b'{"model": "none", "messages": []}'])  # fmt: skip
def test_a_malformed_body_is_the_clients_error(running, body):
    response = running.client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    "kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "application/json"]
)
def test_a_body_is_the_json_that_was_checked_whatever_the_client_calls_it(running, kind):
    """`curl -d` says form; and a form would carry what follows the first &, which nobody has checked."""
    message = {"role": "user", "content": "x"}
    smuggled = "&model=chat&mock_response=SMUGGLED&api_base=http://192.0.2.1&b="
    body = json.dumps({"model": "chat", "messages": [message], "user": smuggled})
    response = running.client.post("/v1/chat/completions", content=body, headers={"content-type": kind})
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"].startswith("answer-of-")


def test_status_is_one_screen_and_one_document(running):
    report = json.loads(running.command("status", "--config", str(running.config), "--json").stdout)
    assert report["ready"] is True
    assert report["groups"]["chat"]["routing"] == "weighted-round-robin"
    text = running.command("status", "--config", str(running.config)).stdout
    assert "group chat: weighted-round-robin" in text
    assert len(text.splitlines()) < 24


def test_the_control_socket_is_for_the_appliances_user_only(running):
    socket_path = running.directory / "state/run/worker-0.sock"
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600
    assert stat.S_IMODE(socket_path.parent.stat().st_mode) == 0o700


# --- refusals ---------------------------------------------------------------------------------------------------------


def refusal(path, *arguments) -> dict:
    result = run("serve", "--config", str(path), "--json", *arguments)
    assert result.returncode == 1, (result.stdout, result.stderr)
    return json.loads(result.stdout)["error"]


@pytest.fixture
def valid(tmp_path):
    with upstream("small") as small:
        path, _ = write_config(tmp_path, [deployment("chat", small)], tls=False)
        yield path


def edit(path, **changes) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def test_a_valid_configuration_passes_the_check(valid):
    result = run("serve", "--config", str(valid), "--check", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["valid"] is True


def test_an_unknown_key_is_refused_by_name(valid):
    edit(valid, rooting={"deadline_ms": 5})
    error = refusal(valid)
    assert error["code"] == "CONFIG_INVALID"
    assert "rooting" in error["cause"]


def test_an_unknown_key_deep_inside_is_refused_too(valid):
    edit(valid, routing={"groups": {"chat": {"strategy": "round-robin", "wieghts": {}}}})
    assert "routing.groups.chat.wieghts" in refusal(valid)["cause"]


def test_a_port_in_use_is_refused_before_anything_slow_happens(valid):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        edit(valid, listen={"port": holder.getsockname()[1]})
        error = refusal(valid)
    assert error["code"] == "GATEWAY_PORT_IN_USE"
    assert "ss -ltnp" in error["remedy"]


def test_a_missing_configuration_is_refused(tmp_path):
    assert refusal(tmp_path / "none.yaml")["code"] == "CONFIG_MISSING"


def test_a_missing_litellm_configuration_is_refused(valid):
    (valid.parent / "litellm.yaml").unlink()
    assert refusal(valid)["code"] == "CONFIG_MISSING"


def test_a_group_that_no_deployment_belongs_to_is_refused(valid):
    edit(valid, routing={"groups": {"chta": {"strategy": "round-robin"}}})
    error = refusal(valid)
    assert error["code"] == "CONFIG_GROUP"
    assert error["evidence"]["groups"] == ["chat"]


@pytest.mark.parametrize(
    "key", ["sk-test", "sk-1234", "sk-" + "a" * 40, "0" * 40, "", "sk-ünsafe-ünsafe-ünsafe-ünsafe-123456"]
)
def test_a_weak_master_key_is_refused(valid, key):
    (valid.parent / "master.key").write_text(key)
    assert refusal(valid, "--check")["code"] == "CONFIG_MASTER_KEY"


def test_a_master_key_that_others_can_read_is_refused(valid):
    (valid.parent / "master.key").chmod(0o644)
    assert refusal(valid, "--check")["code"] == "CONFIG_MASTER_KEY"


def test_plain_http_beyond_loopback_is_refused(valid):
    edit(valid, listen={"host": "0.0.0.0", "port": free_port()})
    assert refusal(valid)["code"] == "CONFIG_INVALID"


def test_a_certificate_without_its_key_is_refused(tmp_path):
    with upstream("small") as small:
        path, _ = write_config(tmp_path, [deployment("chat", small)])
        (tmp_path / "tls.key").write_text("no key")
        assert refusal(path)["code"] == "GATEWAY_TLS"


def test_status_without_a_gateway_says_so(valid):
    result = run("status", "--config", str(valid), "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["error"]["code"] == "GATEWAY_NOT_RUNNING"


def test_status_of_a_gateway_that_is_still_starting_says_so(valid):
    with serve(valid, "", wait=False) as running:
        run_dir = valid.parent / "state/run"
        running.wait_until((run_dir / "litellm.yaml").exists, what="the start")
        os.killpg(running.process.pid, signal.SIGSTOP)  # so that it is still starting however long the question takes
        try:
            result = run("status", "--config", str(valid), "--json")
        finally:
            os.killpg(running.process.pid, signal.SIGCONT)
    assert json.loads(result.stdout)["error"]["code"] == "GATEWAY_BOOTING"


def test_a_configuration_that_litellm_itself_refuses_is_told_with_a_code(tmp_path):
    with upstream("small") as small:
        broken = {"litellm_settings": {"callbacks": ["no_such_module.instance"]}}
        path, _ = write_config(tmp_path, [deployment("chat", small)], tls=False, litellm=broken)
        assert refusal(path)["code"] == "GATEWAY_LITELLM"
