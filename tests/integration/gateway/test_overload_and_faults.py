# ruff: noqa: E501 (tables and small programs read better in one line)
"""Routing never costs a request: slow encoders, overload, upstreams that die, ruined files, full disks, fuzzed bodies."""

import concurrent.futures
import json
import os
import random
import socket
import threading
import time

import httpx
import pytest

from tests.support.gateway import deployment, gateway
from tests.support.routing import place, zone
from tests.support.streams import stream_in_turn
from tests.support.trust import make_authority
from tests.support.upstream import upstream

LABELS = {"a": "openai/small", "b": "openai/large"}
UPSTREAMS = {"open_s": 0.5, "failures": 2, "probes": 1}
UPSTREAM_LIMIT_S = 5  # a sound one answers in milliseconds, and within this on the most crowded machine


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="module")
def slow(tmp_path_factory, authority):
    """An encoder that takes some 90 ms behind a deadline of a second, one thread, a queue of 3."""
    home = tmp_path_factory.mktemp("slow")
    here = zone(home / "zone", authority, labels=LABELS, work=34)
    here.put()
    sections = here.sections(deadline_ms=1000, queue=3, breaker={"failures": 1000})
    with (
        upstream("small") as small,
        upstream("large") as large,
        gateway(home / "gateway", [deployment("chat", small), deployment("chat", large)], **sections) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def three(tmp_path_factory, authority):
    """Three upstreams: the router knows two, the third is the last resort."""
    home = tmp_path_factory.mktemp("three")
    here = zone(home / "zone", authority, labels=LABELS)
    here.put()
    sections = here.sections(upstreams=UPSTREAMS)
    sections["routing"]["groups"]["chat"]["last_resort"] = "spare"
    with (
        upstream("small") as small,
        upstream("large") as large,
        upstream("spare") as spare,
        gateway(
            home / "gateway",
            [deployment("chat", u, timeout=UPSTREAM_LIMIT_S) for u in (small, large, spare)],
            **sections,
        ) as running,
    ):
        yield running, here, {"small": small, "large": large, "spare": spare}


@pytest.fixture
def healthy(three):
    running, _, upstreams = three
    for each in upstreams.values():
        each.mode = "ok"
    running.wait_until(lambda: all_closed(running), what="all upstreams healthy")
    yield three
    for each in upstreams.values():
        each.mode = "ok"


def all_closed(running) -> bool:
    for kind in ("easy", "hard"):  # probes need requests
        running.chat(f"{kind} the {random.random()}")
    found = running.status()["groups"]["chat"]["deployments"]
    return all(not d["health"] or d["health"]["state"] == "closed" for d in found)


def storm(running, prompts, *, threads: int = 16) -> list[httpx.Response]:
    """All prompts at once over connections of their own."""
    local = threading.local()

    def ask(prompt: str) -> httpx.Response:
        if not hasattr(local, "client"):
            local.client = running.new_client()
        body = {"model": "chat", "messages": [{"role": "user", "content": prompt}]}
        return local.client.post("/v1/chat/completions", json=body)

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        return list(pool.map(ask, prompts))


def reasons(responses) -> set[str]:
    return {r.headers["x-appliance-routing"].split("; ")[2] for r in responses}


def test_overload_is_shed_to_round_robin_at_once_and_no_request_fails(slow):
    responses = storm(slow, [f"easy number {n}" for n in range(80)])
    assert [r.status_code for r in responses] == [200] * 80
    assert "overload_shed" in reasons(responses)
    assert "best_score" in reasons(responses), "what can be decided in time still is"
    decisions = slow.client.get("/appliance/decisions", params={"limit": 100}).json()["decisions"]
    shed, decided = (
        sorted(d["latency_ms"] for d in decisions if d["reason"] == reason)
        for reason in ("overload_shed", "best_score")
    )
    assert shed[len(shed) // 2] < decided[0], "who is shed waits less than anybody who was decided for"


def test_what_was_decided_once_needs_no_encoder_again(slow):
    slow.chat("hard and remembered")
    before = slow.status()["workers"][0]["ml_path"]["cache_hits"]
    slow.wait_until(lambda: slow.chat("hard and remembered").headers["x-appliance-routing"].endswith("best_score"))
    assert slow.status()["workers"][0]["ml_path"]["cache_hits"] > before


def test_an_encoder_beyond_the_deadline_opens_the_breaker_and_a_router_of_another_encoder_is_refused(
    tmp_path, authority
):
    here = zone(tmp_path / "zone", authority, labels=LABELS, work=68)
    here.put()
    sections = here.sections(deadline_ms=3, breaker={"failures": 3, "open_s": 60, "probes": 1}, cache_entries=0)
    with (
        upstream("small") as small,
        upstream("large") as large,
        gateway(tmp_path / "gateway", [deployment("chat", small), deployment("chat", large)], **sections) as running,
    ):
        seen: list[str] = []

        def breaks() -> bool:
            seen.append(running.chat(f"easy {len(seen)}").headers["x-appliance-routing"])
            return seen[-1] == "round-robin; fallback; breaker_open"

        running.wait_until(breaks, what="the breaker opens")
        assert "round-robin; timeout; deadline" in seen
        assert running.status()["workers"][0]["ml_path"]["breaker"]["state"] == "open"
        fast = zone(tmp_path / "fast", authority, labels=LABELS)
        place(fast.artifact(), here.router_directory)
        # the new router names another encoder, which is not configured: the old one goes on, and says so
        running.wait_until(
            lambda: (running.status()["routers"]["default"]["problem"] or {}).get("code") == "GATEWAY_ENCODER_MISSING",
            what="the other encoder is missed",
        )
        assert running.chat("easy").status_code == 200


@pytest.mark.parametrize("fault", ["error", "hang"])
def test_an_upstream_that_fails_costs_no_request_and_comes_back_by_itself(healthy, fault):
    running, _, upstreams = healthy
    upstreams["large"].mode = fault
    responses = storm(running, [f"hard the {n}" for n in range(12)], threads=4)
    assert [r.status_code for r in responses] == [200] * 12
    assert {r.headers["x-appliance-deployment"] for r in responses} == {"small"}
    found = {d["id"]: d["health"] for d in running.status()["groups"]["chat"]["deployments"]}
    assert found["large"]["state"] in {"open", "half-open"}
    upstreams["large"].mode = "ok"
    running.wait_until(
        lambda: running.chat("hard the one").headers["x-appliance-deployment"] == "large", what="it is back"
    )


def test_an_unreachable_upstream_is_avoided_from_the_first_refused_connection(tmp_path):
    with upstream("here") as here, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        taken.close()
        gone = deployment("chat", here)
        gone["litellm_params"]["api_base"] = f"http://127.0.0.1:{port}/v1"
        gone["model_info"] = {"id": "gone"}
        with gateway(
            tmp_path, [gone, deployment("chat", here)], tls=False, routing={"upstreams": {"open_s": 60}}
        ) as running:
            responses = [running.chat(f"x {n}") for n in range(8)]
            assert [r.status_code for r in responses] == [200] * 8
            attempts = running.client.get("/appliance/decisions").json()["decisions"]
            assert sum(d["selected"] == "gone" for d in attempts) == 1
            text = running.command("status", "--config", str(running.config)).stdout
            assert "open: unreachable, next try in" in text


def test_the_last_resort_answers_when_all_others_are_down_and_only_then(healthy):
    running, _, upstreams = healthy
    assert {r.headers["x-appliance-deployment"] for r in storm(running, [f"easy {n}" for n in range(8)])} == {"small"}
    upstreams["small"].mode = upstreams["large"].mode = "error"
    responses = storm(running, [f"easy {n} again" for n in range(8)], threads=4)
    assert [r.status_code for r in responses] == [200] * 8
    assert {r.headers["x-appliance-deployment"] for r in responses} == {"spare"}


def test_every_ruined_router_file_under_traffic_costs_no_request(healthy):
    running, here, _ = healthy
    stop, bad = threading.Event(), []

    def traffic() -> None:
        n = 0
        with running.new_client() as client:
            while not stop.is_set():
                n += 1
                body = {"model": "chat", "messages": [{"role": "user", "content": f"easy {n}"}]}
                answer = client.post("/v1/chat/completions", json=body)
                if answer.status_code != 200:
                    bad.append(answer.text)

    thread = threading.Thread(target=traffic)
    thread.start()
    rng = random.Random(5)
    try:
        for file in sorted(here.router_directory.iterdir()):
            good = file.read_bytes()
            for _ in range(3):
                data = bytearray(good)
                for _ in range(rng.randint(1, 20)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
                file.write_bytes(bytes(data[: rng.randint(0, len(data))]))
                time.sleep(0.25)
            file.write_bytes(good)
    finally:
        stop.set()
        thread.join()
    assert bad == []
    running.wait_until(lambda: not running.status()["routers"]["default"]["problem"], what="healed")


def test_reloads_disturb_no_running_stream(healthy):
    running, here, upstreams = healthy
    small = upstreams["small"]
    words: list[str] = []

    def stream() -> None:
        body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "easy the stream"}]}
        with running.new_client() as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
            words.extend(line for line in response.iter_lines() if line.startswith("data: "))

    reader = threading.Thread(target=stream)
    small.held.set()
    try:
        reader.start()
        running.wait_until(lambda: words, what="the stream's first word")
        for n in range(6):
            made = here.put(version=f"9.{n}.0")
            running.client.post("/appliance/reload")
            assert running.chat("hard of").status_code == 200
            running.wait_until(
                lambda made=made: running.status()["routers"]["default"]["digests"] == [made.digest], what="the swap"
            )
        assert reader.is_alive()
        assert len(words) < small.words, "the stream spans all six"
    finally:
        small.held.clear()
        reader.join()
    assert words[-1] == "data: [DONE]"
    assert len(words) > small.words


def test_hundreds_of_streaming_clients_in_turn_each_get_their_whole_stream(healthy):
    """Two thousand of them is `python -m benchmarks.streams`."""
    running, _, upstreams = healthy
    assert stream_in_turn(running, 300, words=upstreams["small"].words) == []


def test_a_full_disk_stops_keeping_the_last_good_router_but_not_the_serving_of_a_new_one(tmp_path, authority):
    import subprocess

    small_disk = tmp_path / "disk"
    small_disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small_disk)], check=True)
    try:
        here = zone(tmp_path / "zone", authority, labels=LABELS)
        here.put()
        with upstream("small") as small, upstream("large") as large:
            deployments = [deployment("chat", small), deployment("chat", large)]
            with gateway(tmp_path / "gateway", deployments, state_dir=str(small_disk), **here.sections()) as running:
                (small_disk / "filler").write_bytes(
                    b"0" * (os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize)
                )
                new = here.put(version="2.0.0")
                running.wait_until(lambda: running.status()["routers"]["default"]["digests"] == [new.digest])
                assert running.chat("easy the").headers["x-appliance-deployment"] == "small"
                assert "last-known-good could not be written" in running.log.read_text()
    finally:
        subprocess.run(["umount", "-l", str(small_disk)], check=True)


def test_an_applications_key_reaches_its_groups_only_even_by_a_fallback(tmp_path):
    import hashlib

    key = "sk-team-" + "k" * 30
    access = {"keys": [{"name": "team", "sha256": hashlib.sha256(key.encode()).hexdigest(), "groups": ["chat"]}]}
    with upstream("open", mode="ok") as opened, upstream("closed") as closed:
        deployments = [deployment("chat", opened), deployment("secret", closed)]
        with gateway(tmp_path, deployments, tls=False, access=access) as running:
            headers = {"authorization": f"Bearer {key}"}
            body = {"messages": [{"role": "user", "content": "x"}]}
            ask = lambda **more: running.client.post("/v1/chat/completions", json={**body, **more}, headers=headers)  # noqa: E731
            assert ask(model="chat").status_code == 200
            assert ask(model="secret").status_code == 403
            assert ask(model="closed").status_code == 403, "a deployment's id is no way in either"
            opened.mode = "error"
            response = ask(model="chat", fallbacks=["secret"])
            assert response.status_code >= 400
            assert closed.requests == [], "no request of that key has reached the other group"
            assert [m["id"] for m in running.client.get("/v1/models", headers=headers).json()["data"]] == ["chat"]
            assert running.client.get("/appliance/status", headers=headers).status_code == 403
            assert running.client.post("/appliance/reload", headers=headers).status_code == 403


def fuzzed(rng: random.Random) -> bytes:
    """Bodies between honest and absurd."""
    scalars = [None, True, -1, 1e308, "", "chat", "x" * 2000, "\ud83d\ude00", [], {}, [[]], {"a": {}}, "\x00", 2**63]
    message = {
        "role": rng.choice(["user", "system", "tool", "assistant", 5, None, ""]),
        "content": rng.choice([*scalars, "easy the"]),
    }
    body = {"model": "chat", "messages": [message] * rng.randint(0, 3)}
    for name in rng.sample(["temperature", "max_tokens", "stream", "tools", "user", "n", "stop", "metadata", "fallbacks", "specific_deployment",
                            "litellm_call_id", "_excluded_deployment_ids", "model_info", "mock_response", "response_format"], rng.randint(0, 4)):  # fmt: skip
        body[name] = rng.choice(scalars)
    data = json.dumps(body).encode()
    return data if rng.random() < 0.85 else data[: rng.randrange(len(data))]


def test_fuzzed_requests_never_break_routing_nor_the_gateway(healthy):
    running, _, _ = healthy
    rng = random.Random(11)
    broken = []
    for _ in range(120):
        body = fuzzed(rng)
        response = running.client.post(
            "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
        )
        if response.status_code >= 500:
            broken.append((response.status_code, body[:300], response.text[:300]))
    assert broken == []
    found = running.status()["groups"]["chat"]["deployments"]
    assert all(not d["health"] or d["health"]["state"] == "closed" for d in found), (
        "nonsense puts nobody out of service"
    )
    assert "routing callback failed" not in running.log.read_text()
    assert running.chat("easy the").status_code == 200
