# ruff: noqa: E501 (tables and small programs read better in one line)
"""The edge (keys, bodies), the egress guard, metrics, logs, health of files: parts that need no server."""

import asyncio
import fcntl
import hashlib
import json
import logging
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.errors import ConfigError
from appliance.gateway import edge, egress, metrics, prompt, secrets
from appliance.gateway.access import KeyRing, Principal
from appliance.gateway.control import ControlServer, ask
from appliance.gateway.decision import Decision
from appliance.gateway.logs import JsonFormatter, UnblockedHandler
from appliance.settings import Key

MASTER = "sk-" + "0123456789abcdef" * 3
APP = "sk-app-key-of-the-team"
CHAT = "/v1/chat/completions"
RING = KeyRing(
    MASTER, [Key(name="team", sha256=hashlib.sha256(APP.encode()).hexdigest(), groups=("chat",), reports=False)]
)


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ([(b"authorization", f"Bearer {MASTER}".encode())], "master"),
        ([(b"authorization", f"bearer {APP}".encode())], "team"),
        ([(b"x-api-key", APP.encode())], "team"),
        ([(b"api-key", f"Bearer {APP}".encode())], "team"),
        ([(b"authorization", f"Bearer {APP}".encode()), (b"x-api-key", APP.encode())], "team"),
        ([(b"authorization", f"Bearer {APP}".encode()), (b"x-api-key", MASTER.encode())], None),
        ([(b"authorization", b""), (b"x-api-key", APP.encode())], "team"),
        ([(b"authorization", APP.encode())], None),
        ([(b"authorization", b"Bearer ")], None),
        ([(b"authorization", hashlib.sha256(APP.encode()).hexdigest().encode())], None),
        ([], None),
    ],
)
def test_a_key_is_known_by_its_digest_and_two_different_ones_are_nobody(headers, name):
    found = RING.authenticate(headers)
    assert (found.name if found else None) == name


def test_litellm_sees_one_key_and_none_of_the_callers():
    headers = RING.as_master([(b"authorization", b"Bearer x"), (b"x-api-key", b"y"), (b"accept", b"z")])
    assert headers == [(b"accept", b"z"), (b"authorization", f"Bearer {MASTER}".encode())]


def test_a_key_sees_its_groups_only():
    team = RING.authenticate([(b"x-api-key", APP.encode())])
    body = b'{"model": "chat", "messages": []}'
    assert edge.checked(body, team, CHAT) == {"model": "chat", "messages": []}
    with pytest.raises(edge.Refused) as refusal:
        edge.checked(body.replace(b"chat", b"secret-group"), team, CHAT)
    assert refusal.value.status == 403
    assert [m["id"] for m in edge.models("/v1/models", team)["data"]] == ["chat"]
    with pytest.raises(edge.Refused):
        edge.models("/v1/models/secret-group", team)


@given(st.binary(max_size=200))
def test_no_body_breaks_the_edge(body):
    try:
        document = edge.checked(body, Principal("master"), CHAT)
    except edge.Refused as refused:
        assert refused.status in {400, 403}
    else:
        assert isinstance(document["model"], str)


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)))  # fmt: skip
def test_no_message_breaks_the_prompt_reader(value):
    for messages, body in (
        ([value], {}),
        (None, {"input": value}),
        (None, {"prompt": value}),
        ([{"role": "user", "content": value}], {}),
    ):
        assert isinstance(prompt.of_request(messages, body), str)
        assert prompt.characters(messages, body) >= 0


def test_the_prompt_is_found_in_every_served_api():
    turn = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert prompt.of_request(turn, {}) == "hello"
    assert prompt.of_request(None, {"input": "hello"}) == "hello"
    assert prompt.of_request(None, {"input": turn}) == "hello"
    assert prompt.of_request(None, {"prompt": ["hello"]}) == "hello"
    assert prompt.of_request(None, {}) == ""


def test_wishes_are_read_from_headers_and_body_and_nonsense_is_no_wish():
    someone = Principal("team")
    assert edge.wishes([(b"x-appliance-cost-weight", b"0.5")], {"user": "ann"}, someone) == ("team/ann", 0.5)
    assert edge.wishes([(b"x-appliance-session", b"s1")], {"user": "ann"}, someone) == ("team/s1", None)
    for bad in (b"nan", b"-1", b"2", b"inf", b"x"):
        assert edge.wishes([(b"x-appliance-cost-weight", bad)], {}, someone) == ("", None)


# --- egress -----------------------------------------------------------------------------------------------------------


def guard(**options) -> egress.EgressGuard:
    allowed = {("vllm.zone", 8000), ("10.0.0.5", 9000)}
    return egress.EgressGuard(allowed, resolve=lambda host: {"10.1.1.1"} if host == "vllm.zone" else set(), **options)


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 1), ("::1", 1), ("localhost", 5), ("::ffff:127.0.0.1", 5),
                                            ("vllm.zone", 8000), ("VLLM.zone", 8000), ("10.0.0.5", 9000), ("10.1.1.1", 8000)])  # fmt: skip
def test_loopback_and_configured_destinations_pass(host, port):
    made = guard()
    made.check(host, port)
    assert made.refused == 0


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 443), ("vllm.zone", 443), ("10.0.0.5", 8000), ("10.1.1.1", 9000),
                                            ("evil.example", 8000), ("169.254.169.254", 80), ("::ffff:192.0.2.1", 8000)])  # fmt: skip
def test_everything_else_is_refused_and_counted(host, port):
    made = guard()
    with pytest.raises(egress.EgressRefused):
        made.check(host, port)
    assert made.describe()["destinations"] == {f"{host}:{port}": 1}


def test_looking_up_a_foreign_name_is_refused_too():
    with pytest.raises(egress.EgressRefused):
        guard().check_name("secret.exfiltrated.example")
    guard().check_name("vllm.zone")


def test_in_report_mode_it_only_counts():
    made = guard(enforce=False)
    made.check("192.0.2.1", 443)
    assert made.refused == 1


def test_destinations_are_found_wherever_a_configuration_names_them():
    document = {
        "model_list": [{"litellm_params": {"api_base": "https://vllm.zone:8000/v1"}}],
        "cache_params": {"host": "redis.zone", "port": 6379},
        "other": ["http://plain.zone/x", "no url", "http://[broken"],
    }
    assert egress.destinations(document) == {("vllm.zone", 8000), ("redis.zone", 6379), ("plain.zone", 80)}


PROBE = """
import asyncio, socket, sys, urllib.request
sys.path.insert(0, ".")
from appliance.gateway.egress import EgressGuard, EgressRefused, guarded_loop
guard = EgressGuard([])
guard.install()
def refused(attempt):
    try:
        attempt()
    except EgressRefused:
        return True
    except OSError as error:
        return isinstance(error.__cause__ or error.args[0], EgressRefused)
    return False
loop = guarded_loop(guard)()
async def by_loop(): await asyncio.get_running_loop().create_connection(asyncio.Protocol, "192.0.2.1", 443)
async def by_name(): await asyncio.get_running_loop().getaddrinfo("example.org", 443)
async def by_udp(): await asyncio.get_running_loop().create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("192.0.2.1", 53))
async def by_aiohttp():
    import aiohttp
    async with aiohttp.ClientSession() as session:
        await session.get("http://192.0.2.1/")
async def by_httpx():
    import httpx
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get("http://192.0.2.1/")
def swallow(attempt):
    before = guard.refused
    try: attempt()
    except Exception: pass
    return guard.refused > before
print(all([
    refused(lambda: socket.create_connection(("192.0.2.1", 443), 1)),
    refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53))),
    refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendmsg([b"x"], [], 0, ("192.0.2.1", 53))),
    refused(lambda: socket.getaddrinfo("example.org", 443)),
    refused(lambda: socket.gethostbyname("example.org")),
    refused(lambda: socket.gethostbyaddr("example.org")),
    refused(lambda: urllib.request.urlopen("http://192.0.2.1/", timeout=1)),
    refused(lambda: loop.run_until_complete(by_loop())),
    refused(lambda: loop.run_until_complete(by_name())),
    refused(lambda: loop.run_until_complete(by_udp())),
    swallow(lambda: loop.run_until_complete(by_aiohttp())),
    swallow(lambda: loop.run_until_complete(by_httpx())),
]), guard.refused)
"""


def test_every_way_out_of_the_process_meets_the_guard():
    result = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=600, check=False)
    assert result.stdout.split()[0] == "True", result.stdout + result.stderr
    assert int(result.stdout.split()[1]) >= 12


KERNEL = """
import socket, subprocess, threading
from appliance.gateway import kernel
listener = socket.create_server(("127.0.0.1", 0)); other = socket.create_server(("127.0.0.1", 0))
print(kernel.landlock([listener.getsockname()[1]]))
def attempt(port):
    try: socket.create_connection(("127.0.0.1", port), 1).close(); return "connected"
    except PermissionError: return "refused"
print(attempt(listener.getsockname()[1]), attempt(other.getsockname()[1]))
waiting = threading.Event(); done = []
def late(): waiting.wait(); done.append(run())
def run():
    try: subprocess.run(["true"]); return "ran"
    except PermissionError: return "refused"
thread = threading.Thread(target=late); thread.start()
print(run(), kernel.seccomp(udp=False), run())
waiting.set(); thread.join()
def opened(*kind):
    try: return socket.socket(*kind).fileno() > 0
    except PermissionError: return "refused"
print(done[0])
print(*(opened(family, socket.SOCK_STREAM, protocol) for family in (socket.AF_INET, socket.AF_INET6) for protocol in (0, 6)),
      opened(socket.AF_UNIX, socket.SOCK_STREAM), opened(socket.AF_UNIX, socket.SOCK_DGRAM))
print(opened(socket.AF_INET, socket.SOCK_RAW, 1), opened(socket.AF_PACKET, socket.SOCK_RAW), opened(socket.AF_VSOCK, socket.SOCK_STREAM),
      opened(socket.AF_INET, socket.SOCK_STREAM, 262), opened(socket.AF_INET, socket.SOCK_STREAM, 132),
      opened(socket.AF_INET, socket.SOCK_DGRAM, 1), opened(socket.AF_INET, socket.SOCK_DGRAM), opened(socket.AF_INET6, socket.SOCK_DGRAM, 17))
print(kernel.seccomp())
"""


def test_the_kernel_refuses_foreign_ports_programs_and_all_sockets_but_tcps_in_every_thread():
    result = subprocess.run([sys.executable, "-c", KERNEL], capture_output=True, text=True, timeout=600, check=False)
    assert result.stdout.splitlines() == [
        "enforced", "connected refused", "ran enforced refused", "refused", " ".join(["True"] * 6),
        " ".join(["refused"] * 8), "enforced",
    ], result.stderr  # fmt: skip


UDP = """
import socket
from appliance.gateway import kernel
print(kernel.seccomp())
print(socket.socket(socket.AF_INET, socket.SOCK_DGRAM).fileno() > 0, socket.getaddrinfo("localhost", 1)[0][4][0])
"""


def test_who_goes_by_names_may_look_them_up():
    result = subprocess.run([sys.executable, "-c", UDP], capture_output=True, text=True, timeout=600, check=False)
    assert result.stdout.splitlines()[0] == "enforced"
    assert result.stdout.splitlines()[1] in {"True 127.0.0.1", "True ::1"}, result.stderr


# --- metrics, logs, secrets, control ----------------------------------------------------------------------------------


def decision(**changes) -> Decision:
    values = {"request_id": "r", "call_id": "c", "at": "now", "group": 'a"b\\', "selected": "x", "strategy": "round-robin",
              "outcome": "success", "reason": "only_candidate", "latency_ms": 3.0}  # fmt: skip
    return Decision(**{**values, **changes})


def test_metrics_of_two_workers_add_up_and_labels_are_escaped():
    workers = [metrics.Metrics(), metrics.Metrics()]
    for worker in workers:
        worker.decided(decision())
        worker.decided(decision(latency_ms=1000.0))
        worker.answered(200)
    text = metrics.render(json.loads(json.dumps([worker.sample({}) for worker in workers])))
    escaped = r'group="a\"b\\"'
    assert f'appliance_selected_total{{deployment="x",{escaped}}} 4' in text
    assert f'appliance_decision_latency_ms_bucket{{{escaped},le="5"}} 2' in text
    assert f'appliance_decision_latency_ms_bucket{{{escaped},le="+Inf"}} 4' in text
    assert f"appliance_decision_latency_ms_count{{{escaped}}} 4" in text
    assert 'appliance_requests_total{status="2xx"} 2' in text


def test_a_librarys_long_message_and_its_exceptions_text_stay_out_of_the_log():
    try:
        raise ValueError("the prompt was: confidential")
    except ValueError:
        record = logging.getLogger("LiteLLM").makeRecord(
            "LiteLLM", 40, "f", 1, "failed\nbody: confidential", (), sys.exc_info()
        )
    event = json.loads(JsonFormatter().format(record))
    assert event["exception"] == "ValueError"
    assert "confidential" not in json.dumps(event)


@pytest.mark.parametrize(
    "message",
    [
        "Exception occured - litellm.APIError: APIError: OpenAIException - confidential",
        'failed for {"messages": "confidential"}',
        "failed: 'confidential'",
        "failed\nconfidential",
    ],
)
def test_a_librarys_message_ends_where_it_begins_to_quote(message):
    event = json.loads(JsonFormatter().format(logging.makeLogRecord({"name": "LiteLLM", "msg": message})))
    assert event["message"]
    assert "confidential" not in event["message"]


def test_a_log_that_nobody_reads_halts_nobody_and_says_later_what_was_lost():
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as reader, open(writing, "w") as stream:
        handler = UnblockedHandler(stream)
        handler.setFormatter(JsonFormatter())
        capacity = fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
        said = 2 * capacity // 100
        for number in range(said):  # a handler that waits would wait here for ever
            handler.emit(logging.makeLogRecord({"name": "appliance.x", "msg": f"{number:0100}", "levelname": "INFO"}))
        before = reader.read(capacity).splitlines()
        handler.emit(logging.makeLogRecord({"name": "appliance.x", "msg": "read again", "levelname": "INFO"}))
        told, last = map(json.loads, reader.read(capacity).splitlines())
    assert 0 < len(before) < said
    assert told["lost"] == said - len(before)
    assert last["message"] == "read again"


def test_a_secret_is_one_line_in_a_file_of_ones_own(tmp_path):
    path = tmp_path / "secret"
    path.touch(0o600)
    path.write_text("value\n")
    assert secrets.read_secret(path) == "value"
    for bad in ("", "\n", "two\nlines", "sp ace", "\x00"):
        path.write_text(bad)
        with pytest.raises(ConfigError) as refusal:
            secrets.read_secret(path)
        assert refusal.value.code == "CONFIG_SECRET"
    path.write_text("value")
    path.chmod(0o640)
    with pytest.raises(ConfigError) as refusal:
        secrets.read_secret(path)
    assert refusal.value.code == "CONFIG_SECRET"
    with pytest.raises(ConfigError) as refusal:
        secrets.read_secret(tmp_path / "none")
    assert refusal.value.code == "CONFIG_MISSING"


def test_the_control_socket_works_however_deep_its_folder_lies(tmp_path):
    deep = tmp_path.joinpath(*["a-long-name-of-a-folder"] * 8)
    deep.mkdir(parents=True)

    async def serve() -> None:
        async def echo(request):
            return {"got": request["word"]}

        server = ControlServer(deep / "worker-0.sock", {"echo": echo})
        await server.start()
        assert await asyncio.to_thread(ask, deep / "worker-0.sock", "echo", word="x") == {"got": "x"}
        assert "error" in await asyncio.to_thread(ask, deep / "worker-0.sock", "unknown")
        server.stop()

    asyncio.run(serve())
