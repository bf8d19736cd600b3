"""No request fails while one model server lives: not while it still rests, nor by connections from before its restart.

Every rest lasts for minutes here: nobody comes back by waiting, on however slow a machine.
"""

import concurrent.futures
import json

import pytest

from appliance.operations.acceptance.upstream import stand_ins
from tests.support.gateway import deployment, gateway
from tests.support.upstream import upstream

pytestmark = [pytest.mark.slow, pytest.mark.server]
REST_S = 600
RESTING = {
    "litellm": {"router_settings": {"num_retries": 3, "allowed_fails": 0, "cooldown_time": REST_S}},
    "routing": {"upstreams": {"open_s": REST_S, "failures": 1, "probes": 2}},
}


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Two servers of a group that can die; one alone; three pairs of which one never answers a request."""
    with (
        stand_ins(["a", "b", "alone"]) as servers,
        upstream("begins", mode="begins") as begins,
        upstream("busy", mode="busy") as busy,
        upstream("missing", mode="missing") as missing,
        upstream("sound") as sound,
    ):
        deployments = [
            servers["a"].as_deployment("pair"), servers["b"].as_deployment("pair"),
            servers["alone"].as_deployment("alone"),
            deployment("begun", begins), deployment("begun", sound),
            *(
                deployment(f"with-{bad.name}", each, id_=f"{bad.name}-{each.name}")
                for bad in (busy, missing)
                for each in (bad, sound)
            ),
        ]  # fmt: skip
        with gateway(tmp_path_factory.mktemp("hope"), deployments, tls=False, **RESTING) as made:
            yield made, servers, {"begins": begins, "busy": busy, "missing": missing}


def storm(made, group: str, count: int, *, at_once: int = 8, streams: int = 2) -> list[tuple[int, str]]:
    """Every so manieth a stream, over new connections; (status, text) of each answer."""

    def ask(number: int) -> tuple[int, str]:
        body = {
            "model": group,
            "stream": number % streams == 0,
            "messages": [{"role": "user", "content": f"number {number}"}],
        }
        with made.new_client() as client:
            response = client.post("/v1/chat/completions", json=body)
        if response.status_code != 200 or not body["stream"]:
            return response.status_code, response.text if response.status_code != 200 else said(response.json())
        lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        return 200, "".join(said(json.loads(line)) for line in lines[:-1])

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(ask, range(count)))


def said(answer: dict) -> str:
    choice = answer["choices"][0]
    return choice.get("message", choice.get("delta", {})).get("content") or ""


def told(made, group: str) -> dict[str, dict]:
    return {each["id"]: each for each in made.status()["groups"][group]["deployments"]}


def rests(made, group: str, id_: str) -> bool:
    found = told(made, group)[id_]
    return bool(found["cooldown"]) and bool(found["health"]) and found["health"]["state"] == "open"


def test_one_that_is_back_and_still_rests_is_asked_when_the_other_dies(running):
    made, servers, _ = running
    storm(made, "pair", 20)  # connections that are kept
    for dies, returns in (("a", "b"), ("b", "a"), ("a", "b")):
        servers[dies].stop()
        answered = storm(made, "pair", 20)
        assert set(answered) == {(200, returns)}
        made.wait_until(lambda name=dies: storm(made, "pair", 2) and rests(made, "pair", name), what=f"{dies} rests")
        servers[dies].start()
        servers[returns].stop()
        answered = storm(made, "pair", 50)
        assert set(answered) == {(200, dies)}, "nobody else lives, and it rested"
        made.wait_until(
            lambda name=dies: storm(made, "pair", 2) and told(made, "pair")[name]["health"]["state"] == "closed",
            what=f"answers end the rest of {dies}",
        )
        assert not told(made, "pair")[dies]["cooldown"]
        servers[returns].start()
    log = made.log.read_text()
    assert "request failed" not in log, "what was answered in the end has not failed"


def test_connections_from_before_a_restart_fail_no_request_even_of_a_server_that_is_alone(running):
    made, servers, _ = running
    for _ in range(3):
        assert set(storm(made, "alone", 24, at_once=12)) == {(200, "alone")}
        servers["alone"].stop()
        servers["alone"].start()
        assert set(storm(made, "alone", 24, at_once=12)) == {(200, "alone")}


def test_a_stream_that_breaks_off_before_its_first_part_is_asked_of_another(running):
    made, _, bad = running
    answered = storm(made, "begun", 8, streams=1)
    assert {status for status, _ in answered} == {200}
    assert {text.split()[0] for _, text in answered} == {"answer-of-sound"}
    assert bad["begins"].requests, "it was asked first at least once"


@pytest.mark.parametrize("name", ["busy", "missing"])
def test_whoever_is_busy_or_does_not_have_the_model_costs_no_request_that_another_can_answer(running, name):
    made, _, bad = running
    answered = storm(made, f"with-{name}", 16)
    assert {status for status, _ in answered} == {200}
    assert {text.split()[0] for _, text in answered} == {"answer-of-sound"}
    assert bad[name].requests, "it was asked first at least once"


def test_a_long_wait_is_the_clients_and_a_short_one_is_waited(tmp_path):
    """With LiteLLM's own settings, which retry twice."""
    with (
        upstream("busy", mode="busy") as busy,
        gateway(tmp_path, [deployment("chat", busy)], tls=False) as made,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}]}
        busy.retry_after = "50"
        response = made.client.post("/v1/chat/completions", json=body)
        assert (response.status_code, response.headers["retry-after"]) == (429, "50")
        assert len(busy.requests) == 1, "asked again before it wanted to be"
        busy.retry_after = "3"
        answer = pool.submit(made.client.post, "/v1/chat/completions", json=body, timeout=60)
        made.wait_until(lambda: len(busy.requests) == 2, what="it was asked")
        busy.mode = "ok"
        assert answer.result(timeout=60).status_code == 200
        assert len(busy.requests) == 3


def test_where_nobody_lives_each_is_asked_and_the_client_is_told(running):
    made, servers, _ = running
    for name in ("a", "b"):
        servers[name].stop()
    try:
        for status, text in storm(made, "pair", 6):
            assert status == 502
            assert json.loads(text)["error"]["code"] == "GATEWAY_UPSTREAM"
        newest = made.client.get("/appliance/decisions", params={"limit": 50}).json()["decisions"]
        last = [each["selected"] for each in newest if each["request_id"] == newest[0]["request_id"]]
        assert set(last) == {"a", "b"}
    finally:
        for name in ("a", "b"):
            servers[name].start()
