"""Several workers, reloads, restarts and stops, under traffic, as real processes."""

import contextlib
import http.client
import json
import os
import signal
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

from tests.support.gateway import PATIENCE_S, deployment, gateway, run, serve
from tests.support.reloads import Traffic, reload_under_load
from tests.support.routing import prompts, zone
from tests.support.servers import listens
from tests.support.trust import make_authority
from tests.support.upstream import upstream

LABELS = {"a": "openai/small", "b": "openai/large"}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return make_authority(tmp_path_factory.mktemp("authority") / "ca")


@pytest.fixture(scope="module")
def pair(tmp_path_factory, authority):
    """Two workers with a router each."""
    home = tmp_path_factory.mktemp("pair")
    here = zone(home / "zone", authority, labels=LABELS)
    here.put()
    with (
        upstream("small") as small,
        upstream("large") as large,
        gateway(
            home / "gateway",
            [deployment("chat", small), deployment("chat", large)],
            listen={"workers": 2},
            **here.sections(),
        ) as running,
    ):
        running.wait_until(lambda: len(running.status()["workers"]) == 2, what="both workers")
        yield running, here


def digests(running) -> list[str]:
    return running.status()["routers"]["default"]["digests"]


def test_all_workers_converge_on_every_new_version_under_traffic_without_a_failed_request(pair):
    running, here = pair
    with Traffic(running) as traffic:
        for number in range(4):
            made = here.put(version=f"3.{number}.0", swapped=bool(number % 2))
            running.wait_until(
                lambda made=made: (
                    (found := running.status())["converged"] and found["routers"]["default"]["digests"] == [made.digest]
                )
            )
        running.wait_until(lambda: traffic.answers > 10, what="traffic")
    assert traffic.failures == []


@pytest.mark.slow
def test_two_hundred_reloads_a_minute_fail_no_request_and_all_workers_end_on_the_last_router(pair):
    """The whole minute is `python -m benchmarks.reloads`."""
    running, here = pair
    done = reload_under_load(running, here, count=50, per_minute=200)
    assert done.failures == []
    assert done.answers > 20
    assert len(done.swaps) == 2
    assert min(done.swaps) >= 5, "every worker has really exchanged its router again and again"


def test_sighup_and_the_endpoint_judge_a_refused_router_again(pair):
    running, here = pair
    good = here.put(version="4.0.0")
    running.wait_until(lambda: digests(running) == [good.digest])
    (here.router_directory / "artifact.sigstore.json").write_text("{}")

    def judged() -> list[str]:
        """When each worker refused it."""
        problems = [worker["routers"]["default"]["problem"] for worker in running.status()["workers"]]
        return [problem["at"] for problem in problems if problem]

    running.wait_until(lambda: len(judged()) == 2, what="refused by both")
    first = judged()
    time.sleep(0.5)  # several looks
    assert judged() == first, "what was refused is not tried again by itself"
    assert running.client.post("/appliance/reload").status_code == 202
    running.wait_until(lambda: min(judged()) > max(first), what="judged again by the endpoint")
    second = judged()
    running.process.send_signal(signal.SIGHUP)
    running.wait_until(lambda: min(judged()) > max(second), what="judged again by SIGHUP")
    assert digests(running) == [good.digest], "the good one has served all the time"


def test_reload_is_for_the_master_key_alone(pair):
    running, _ = pair
    assert running.client.post("/appliance/reload", headers={"authorization": "Bearer sk-no"}).status_code == 401
    assert running.client.get("/appliance/reload").status_code == 405


def test_a_killed_worker_is_replaced_and_nobody_notices_but_its_own_clients(pair):
    running, here = pair
    good = here.put(version="5.0.0")
    running.wait_until(lambda: digests(running) == [good.digest])
    before = {worker["pid"] for worker in running.status()["workers"]}
    os.kill(min(before), signal.SIGKILL)
    for prompt in prompts(5):
        with running.new_client() as fresh:
            body = {"model": "chat", "messages": [{"role": "user", "content": prompt}]}
            assert fresh.post("/v1/chat/completions", json=body).status_code == 200
    running.wait_until(
        lambda: len(found := running.status()["workers"]) == 2 and {w["pid"] for w in found} != before,
        what="a new worker",
    )  # fmt: skip
    assert running.status()["converged"]


def replaced(running, sig: signal.Signals) -> None:
    """End one of the two workers and wait for the next."""
    victim = min(worker["pid"] for worker in running.status()["workers"])
    os.kill(victim, sig)
    running.wait_until(
        lambda: len(found := {w["pid"] for w in running.status()["workers"]}) == 2 and victim not in found,
        what="a new worker",
    )


def test_a_worker_that_is_told_to_end_fails_no_request(pair):
    running, _ = pair
    with Traffic(running, threads=4) as traffic:
        for _ in range(2):
            running.wait_until(lambda seen=traffic.answers: traffic.answers > seen + 10, what="traffic")
            replaced(running, signal.SIGTERM)
    assert traffic.failures == []


def test_a_worker_that_is_killed_fails_no_request_of_the_stock_client(pair):
    """Its connections die with it; whoever asks as OpenAI's client does by itself asks the other one again."""
    running, _ = pair
    stop, answers, failures = threading.Event(), [], []

    def ask() -> None:
        http = httpx.Client(verify=running.tls, trust_env=False)
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key=running.key, http_client=http) as client:
            while not stop.is_set():
                try:
                    answer = client.chat.completions.create(model="chat", messages=[{"role": "user", "content": "x"}])
                    answers.append(answer.choices[0].message.content)
                except openai.OpenAIError as error:
                    failures.append(repr(error))

    clients = [threading.Thread(target=ask) for _ in range(6)]
    for client in clients:
        client.start()
    try:
        for _ in range(2):
            seen = len(answers)
            running.wait_until(lambda seen=seen: len(answers) > seen + 10, what="traffic")
            replaced(running, signal.SIGKILL)
    finally:
        stop.set()
        for client in clients:
            client.join()
    assert failures == []


def test_a_worker_that_hangs_keeps_no_new_client_waiting(pair):
    running, _ = pair
    hung = running.status()["workers"][0]["pid"]
    os.kill(hung, signal.SIGSTOP)
    try:
        running.wait_until(lambda: Path(f"/proc/{hung}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        for prompt in prompts(5):
            with running.new_client() as fresh:
                body = {"model": "chat", "messages": [{"role": "user", "content": prompt}]}
                assert fresh.post("/v1/chat/completions", json=body).status_code == 200
    finally:
        os.kill(hung, signal.SIGCONT)


def test_status_tells_how_many_connections_each_worker_has(pair):
    running, _ = pair
    with contextlib.ExitStack() as open_clients:
        for _ in range(6):
            assert open_clients.enter_context(running.new_client()).get("/appliance/live").status_code == 200
        assert sum(worker["connections"] for worker in running.status()["workers"]) >= 6


def test_the_decisions_of_all_workers_are_told_by_any_of_them(pair):
    running, _ = pair
    asked = running.chat("hard prove").headers["x-appliance-request-id"]
    for _ in range(6):
        with running.new_client() as fresh:
            assert asked in {d["request_id"] for d in fresh.get("/appliance/decisions").json()["decisions"]}


def test_a_second_gateway_on_the_same_state_is_refused(pair):
    running, _ = pair
    result = run("serve", "--config", str(running.config), "--json")
    assert result.returncode == 1
    assert json.loads(result.stdout)["error"]["code"] == "GATEWAY_ALREADY_RUNNING"


def test_a_router_that_served_survives_a_restart_with_a_ruined_folder(tmp_path, authority):
    here = zone(tmp_path / "zone", authority, labels=LABELS)
    good = here.put()
    with upstream("small") as small, upstream("large") as large:
        deployments = [deployment("chat", small), deployment("chat", large)]
        with gateway(tmp_path / "gateway", deployments, **here.sections()) as first:
            assert digests(first) == [good.digest]
            config, key = first.config, first.key
        (here.router_directory / "weights.safetensors").write_bytes(b"ruined")
        with serve(config, key) as second:
            router = second.status()["routers"]["default"]
            assert router["digests"] == [good.digest]
            assert router["serving"]["origin"] == "last-known-good"
            assert router["problem"]["code"] == "TRUST_OMS_FILES"
            assert second.chat("hard of").headers["x-appliance-deployment"] == "large"


def test_a_tampered_last_known_good_is_not_trusted_either(tmp_path, authority):
    here = zone(tmp_path / "zone", authority, labels=LABELS)
    good = here.put()
    with upstream("small") as small, upstream("large") as large:
        deployments = [deployment("chat", small), deployment("chat", large)]
        with gateway(tmp_path / "gateway", deployments, **here.sections()) as first:
            config, key = first.config, first.key
        (here.router_directory / "weights.safetensors").write_bytes(b"ruined")
        kept = tmp_path / "gateway/state/routers/default" / good.digest
        (kept / "weights.safetensors").write_bytes(b"ruined, too")
        with serve(config, key) as second:
            assert second.status()["routers"]["default"]["mode"] == "weighted-round-robin"
            assert second.chat("hard of").status_code == 200


def test_a_required_router_that_is_missing_is_refused_at_the_start(tmp_path, authority):
    from tests.support.gateway import write_config

    here = zone(tmp_path / "zone", authority, labels=LABELS)
    with upstream("small") as small:
        path, _ = write_config(
            tmp_path / "gateway", [deployment("chat", small)], **here.sections(router={"required": True})
        )
        result = run("serve", "--config", str(path), "--json")
    error = json.loads(result.stdout)["error"]
    assert (result.returncode, error["code"]) == (1, "GATEWAY_ROUTER_REQUIRED")
    assert "FILE_MISSING" in error["cause"]


def test_a_missing_encoder_is_named_by_its_digest(tmp_path, authority):
    import shutil

    from tests.support.gateway import write_config

    here = zone(tmp_path / "zone", authority, labels=LABELS)
    here.put()
    shutil.rmtree(here.directory / "encoder")
    with upstream("small") as small:
        path, _ = write_config(
            tmp_path / "gateway", [deployment("chat", small)], **here.sections(router={"required": True})
        )
        result = run("serve", "--config", str(path), "--json")
    assert "GATEWAY_ENCODER_MISSING" in json.loads(result.stdout)["error"]["cause"]


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_a_stop_lets_readiness_fall_first_then_closes_and_lets_streams_finish(tmp_path):
    with (
        upstream("slow") as slow,
        gateway(tmp_path, [deployment("chat", slow)], drain={"readiness_s": 4.0, "streams_s": 3600}) as running,
    ):
        words: list[str] = []
        kept = running.new_client()  # says no goodbye until the end of the test

        def read() -> None:
            body = {"model": "chat", "stream": True, "messages": [{"role": "user", "content": "x"}]}
            with kept.stream("POST", "/v1/chat/completions", json=body) as response:
                words.extend(line for line in response.iter_lines() if line.startswith("data: "))

        slow.held.set()
        reader = threading.Thread(target=read)
        reader.start()
        running.wait_until(lambda: words, what="the stream's first word")
        running.process.send_signal(signal.SIGTERM)
        running.wait_until(lambda: running.client.get("/appliance/ready").status_code == 503, what="503")
        assert running.client.get("/appliance/live").status_code == 200, "it still listens"
        running.wait_until(lambda: refuses_connections(running), what="the listener closes")
        assert reader.is_alive(), "the stream goes on"
        slow.held.clear()
        reader.join()
        assert words[-1] == "data: [DONE]"
        assert running.process.wait(PATIENCE_S) == 0, "nobody's idle connection holds it up"
        kept.close()


def test_whoever_keeps_a_connection_is_told_to_leave_before_it_closes(tmp_path):
    """Who asks again and again meets the last answer of a connection, and never its end instead of an answer."""
    with (
        upstream("small") as small,
        gateway(tmp_path, [deployment("chat", small)], drain={"readiness_s": 1.0, "streams_s": 300}) as running,
    ):
        kept = {}
        for path in ("/v1/models", "/appliance/status", "/appliance/metrics", "/health/liveliness"):
            kept[path] = http.client.HTTPSConnection("127.0.0.1", running.port, timeout=PATIENCE_S, context=running.tls)
            kept[path].connect()
            kept[path].auto_open = 0

        def told_to_leave(path: str) -> bool:
            kept[path].request("GET", path, headers={"authorization": f"Bearer {running.key}"})
            answer = kept[path].getresponse()
            answer.read()
            assert answer.status == 200
            return answer.getheader("connection") == "close"

        assert not [path for path in kept if told_to_leave(path)]
        running.process.send_signal(signal.SIGTERM)
        while kept:
            for path in [path for path in kept if told_to_leave(path)]:
                kept.pop(path).close()
        assert running.process.wait(PATIENCE_S) == 0


def refuses_connections(running) -> bool:
    """Whether nobody listens any more."""
    return not listens(running.port)


def test_a_second_signal_forces(tmp_path):
    with (
        upstream("hung", mode="hang") as hung,
        gateway(tmp_path, [deployment("chat", hung)], drain={"readiness_s": 0, "streams_s": 300}) as running,
    ):

        def ask() -> None:
            with running.new_client() as client:
                try:
                    client.post(
                        "/v1/chat/completions", json={"model": "chat", "messages": [{"role": "user", "content": "x"}]}
                    )
                except httpx.HTTPError:
                    return

        asker = threading.Thread(target=ask)
        asker.start()
        running.wait_until(lambda: hung.requests)
        running.process.send_signal(signal.SIGTERM)
        running.wait_until(lambda: refuses_connections(running), what="the listener closes")
        assert running.process.poll() is None, "it waits for the request"
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(PATIENCE_S) == 0
        asker.join()
