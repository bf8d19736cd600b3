"""Requests through real HTTP, described and absurd: none ends in an error of ours, and none steers anything.

The long form is a command: `python -m tests.fuzz.gateway.described_requests`.
"""

import concurrent.futures
import contextlib
import json
import os
import random
import re
import socket
import subprocess
import sys

import pytest

from appliance.gateway import fields
from appliance.gateway.steering import steering_names
from tests.support.gateway import deployment, gateway
from tests.support.routing import zone
from tests.support.trust import make_authority
from tests.support.upstream import upstream

CHAT = "/v1/chat/completions"
DESCRIBED = "POST /v1/chat/completions"
TURN = [{"role": "user", "content": "easy the"}]
BODY = {"model": "chat", "messages": TURN}
LIMIT_S = 120.0  # seconds for one answer; a hundred times what one takes


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    home = tmp_path_factory.mktemp("schemathesis")
    here = zone(home / "zone", make_authority(home / "ca"), labels={"a": "openai/small", "b": "openai/large"})
    here.put()
    with (
        upstream("small") as small,
        upstream("large") as large,
        gateway(
            home / "gateway", [deployment("chat", small), deployment("chat", large)], tls=False, **here.sections()
        ) as made,
    ):
        yield made


@pytest.mark.timeout(900)
def test_no_request_made_from_the_description_ends_in_an_error_of_the_server(running):
    result = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.gateway.described_requests", running.url],
        env={**os.environ, "APPLIANCE_KEY": running.key}, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    found = {line["operation"]: line for line in map(json.loads, result.stdout.splitlines())}
    assert result.returncode == 0, (found, result.stderr[-3000:])
    assert len(found) > 10, "every operation of the description"
    assert {"200", "400"} <= found[DESCRIBED]["statuses"].keys(), "both sorts came through"


# --- what fuzzing found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"stream": True, "stream_timeout": {"a": 0.3}},
        {"timeout": "x"},
        {"input_cost_per_token": "x"},
        {"allowed_openai_params": 5},
        {"additional_drop_params": 3, "drop_params": 5},
        {"tools": [5]},
        {"tool_choice": [5]},
        {"logit_bias": 5},
        {"metadata": {"tags": 5}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
        {"messages": [{"role": "developer"}]},
        {"messages": [{"role": "user", "content": [{}]}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": 5}}]}]},
    ],
)
def test_what_once_was_an_error_of_the_server_is_the_clients(running, more):
    response = running.client.post(CHAT, json={**BODY, **more}, timeout=LIMIT_S)
    assert response.status_code == 400
    assert response.json()["error"]["code"] in {"GATEWAY_FIELD", "GATEWAY_FIELD_TYPE"}
    assert response.json()["error"]["param"] in more


def test_a_picture_of_another_api_counts_no_tokens(running):
    turn = {"role": "tool", "content": [{"type": "image_url", "image_url": {"url": ""}}]}
    response = running.client.post("/v1/messages/count_tokens", json={**BODY, "messages": [turn]}, timeout=LIMIT_S)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "GATEWAY_FIELD_TYPE")


def test_no_name_that_litellm_knows_steers_it_whatever_its_value(running):
    names = sorted(steering_names() - fields.CHAT.keys())
    assert len(names) > 1500
    odd = [{"a": 0.3}, [5], "x", 0, True, 1e300, {"model": "other"}, "http://127.0.0.1:9/"]
    for position, name in enumerate(names[::8]):
        body = {**BODY, name: odd[position % len(odd)]}
        response = running.client.post(CHAT, json=body, timeout=LIMIT_S)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "GATEWAY_FIELD"), (name, response.text)


# --- raw bytes --------------------------------------------------------------------------------------------------------


def spoken(running, data: bytes, *, patience_s: float = LIMIT_S) -> list[int]:
    """Send bytes as they are and read the statuses of all answers, until the gateway hangs up or patience ends.

    A request that is not whole is never answered; for such, patience is short, and then our end hangs up.
    """
    host, port = running.url.removeprefix("http://").split(":")
    answer = b""
    with (
        contextlib.suppress(ConnectionResetError, BrokenPipeError),  # it hung up on what it had refused already
        socket.create_connection((host, int(port)), timeout=LIMIT_S) as connection,
    ):
        connection.sendall(data)
        connection.settimeout(patience_s)
        with contextlib.suppress(TimeoutError):
            while part := connection.recv(65536):
                answer += part
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


WHOLE = json.dumps(BODY).encode()
LAST = b"connection: close\r\n"


def asked(running, body: bytes = WHOLE, *, head: bytes = LAST, length: int | None = None, sized: bool = True) -> bytes:
    """One POST, as bytes."""
    size = b"content-length: %d\r\n" % (len(body) if length is None else length) if sized else b""
    line = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: gateway\r\n"
    return line + b"authorization: Bearer " + running.key.encode() + b"\r\n" + size + head + b"\r\n" + body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (json.dumps(BODY).encode(), 200),
        (b"\xef\xbb\xbf" + json.dumps(BODY).encode(), 400),
        (json.dumps(BODY).encode("utf-16"), 400),
        (b'{"model": "chat", "messages": [{"role": "user", "content": "\xff\xfe"}]}', 400),
        (b'{"model": "chat", "messages": [{"role": "user", "content": "\\ud800"}]}', 400),
        (b'{"model": "chat", "messages": [{"role": "user", "content": "\\u0000"}]}', 200),
        (b'{"model": "other", "messages": [{"role": "user", "content": "x"}], "model": "chat"}', 200),
        (b'{"model": "chat", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
        (b'{"model": "chat", "messages": [], "tools": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}", 400),
        (json.dumps({**BODY, "temperature": float("nan")}).encode(), 400),
        (json.dumps({**BODY, "temperature": float("inf")}).encode(), 400),
        (b'{"model": "chat", "messages": [], "max_tokens": 1e999}', 400),
        (b'{"model": "chat", "messages": [], "max_tokens": ' + b"9" * 5000 + b"}", 400),
        (b'{"model": "chat", "messages": [], "seed": 18446744073709551616}', 400),
        (b'{"model": "chat", "messages": [{"role": "user", "content": "x"}], "seed": 9223372036854775808}', 200),
        (b"", 400),
        (b"\x00" * 100, 400),
        (b'{"model": "chat"}', 400),
    ],
)
def test_a_body_of_any_bytes_is_answered_as_what_it_is(running, body, status):
    assert spoken(running, asked(running, body)) == [status]


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "application/xml",
        "multipart/form-data",
        "application/x-www-form-urlencoded",
        "text/\xff",
        "application/json;" * 50,
    ],
)
@pytest.mark.parametrize("encoding", ["", "gzip", "br, deflate"])
def test_a_body_is_json_whatever_its_headers_call_it(running, kind, encoding):
    head = f"content-type: {kind}\r\ncontent-encoding: {encoding}\r\n".encode("latin-1")
    assert spoken(running, asked(running, head=head + LAST)) == [200]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"expect: 100-continue\r\n", 200),
        (b"expect: nonsense\r\n", 200),
        (b"content-length: 7\r\n", 400),
        (b"transfer-encoding: gzip\r\n", 400),
        (b"x: " + b"a" * 200_000 + b"\r\n", 400),
        (b"".join(b"x-%d: y\r\n" % n for n in range(10_000)), 200),
        (b"x-appliance-session: \xff\xfe\r\nx-appliance-cost-weight: 1e999\r\n", 200),
        (b"x-litellm-timeout: abc\r\nx-litellm-num-retries: abc\r\n", 200),
        (b"traceparent: nonsense\r\ntracestate: \xff=\x01\r\n", 200),
        (b"no colon\r\n", 400),
    ],
)
def test_a_head_of_any_bytes_is_answered_as_what_it_is(running, head, status):
    assert [found for found in spoken(running, asked(running, head=head + LAST)) if found != 100] == [status]


@pytest.mark.parametrize(
    "data",
    [
        {"length": 10_000},
        {"length": -1},
        {"length": 1},
        {"head": b"transfer-encoding: chunked\r\n"},
        {"head": b"transfer-encoding: chunked\r\n", "body": b"zz\r\n{}\r\n0\r\n\r\n", "sized": False},
        {"head": b"transfer-encoding: chunked\r\n", "body": b"2\r\n{}", "sized": False},
        {"head": b"", "sized": False},
    ],
)
def test_a_length_that_is_not_the_bodys_is_no_error_of_the_server(running, data):
    assert all(status < 500 for status in spoken(running, asked(running, **data), patience_s=0.5))


def test_a_chunked_body_is_put_together_and_pipelined_requests_are_answered_in_order(running):
    chunks = b"".join(b"%x;ext=1\r\n%s\r\n" % (1, WHOLE[at : at + 1]) for at in range(len(WHOLE))) + b"0\r\n\r\n"
    assert spoken(running, asked(running, chunks, head=b"transfer-encoding: chunked\r\n" + LAST, sized=False)) == [200]
    three = asked(running, head=b"") + asked(running, b"{", head=b"") + asked(running)
    assert spoken(running, three) == [200, 400, 200]


def test_mutated_requests_are_no_error_of_the_server(running):
    rng = random.Random(20261123)
    body = json.dumps({**BODY, "max_tokens": 5, "stop": ["x"]}).encode()
    made = [mutated(rng, asked(running, body)) for _ in range(200)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda data: spoken(running, data, patience_s=0.5), made))
    assert not [(data, found) for data, found in zip(made, answers, strict=True) if any(each >= 500 for each in found)]
    assert any(answers), "some of it was a request"


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Some bytes changed, lost or doubled."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(changed))
        match rng.randrange(3):
            case 0:
                changed[at] = rng.randrange(256)
            case 1:
                del changed[at : at + rng.randint(1, 20)]
            case _:
                changed[at:at] = changed[rng.randrange(len(changed)) :][: rng.randint(1, 40)]
    return bytes(changed)


def test_after_all_that_every_deployment_still_serves(running):
    for each in running.status()["groups"]["chat"]["deployments"]:
        assert not each["health"] or each["health"]["state"] == "closed"
    assert running.chat("easy the").headers["x-appliance-deployment"] == "small"
    assert running.chat("hard of").headers["x-appliance-deployment"] == "large"
    assert "routing callback failed" not in running.log.read_text()
    assert "GATEWAY_UNHANDLED" not in running.log.read_text()
