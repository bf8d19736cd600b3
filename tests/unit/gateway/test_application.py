"""The ASGI edge by itself: what reaches the inner application, and what becomes of a report that fails."""

import asyncio
import json
from urllib.parse import unquote

import pytest

from appliance.errors import GatewayError
from appliance.gateway import context, faults
from appliance.gateway.access import KeyRing
from appliance.gateway.application import Application, Report
from appliance.gateway.metrics import Metrics
from appliance.settings import Access

MASTER = "sk-" + "0123456789abcdef" * 3
CHAT = json.dumps({"model": "chat", "messages": [{"role": "user", "content": "x"}]}).encode()


async def broken(_):
    raise GatewayError("GATEWAY_NOT_RUNNING", "no worker answers")


class Inner:
    """Stands where LiteLLM stands; remembers what came through."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict, bytes]] = []

    async def __call__(self, scope, receive, send) -> None:
        message = await receive()
        self.seen.append((scope, message["body"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def ask(path: str, body: bytes = b"", **options) -> tuple[int, dict]:
    sent = messages(path, body, **options)
    return sent[0]["status"], json.loads(sent[1]["body"])


def messages(
    path: str, body: bytes = b"", *, inner=None, method: str = "POST", query: bytes = b"", **headers: str
) -> list[dict]:
    application = Application(
        inner or Inner(), started=None, ready=lambda: True, reports={"/appliance/broken": Report(broken)},
        keys=KeyRing(MASTER), access=Access(max_body_bytes=10_000), metrics=Metrics(),
    )  # fmt: skip
    given = {"authorization": f"Bearer {MASTER}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http", "path": unquote(path), "raw_path": path.encode(), "method": method, "query_string": query,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    sent: list[dict] = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(application(scope, receive, send))
    return sent


def test_a_report_that_cannot_be_given_now_says_why_by_its_code():
    status, answer = ask("/appliance/broken", method="GET")
    assert (status, answer["error"]["code"]) == (503, "GATEWAY_NOT_RUNNING")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": "multipart/form-data; boundary=x", "content_encoding": "gzip"},
        {"content_type": "application/json; charset=utf-16"},
    ],
)
def test_a_checked_body_goes_on_as_json_whatever_it_was_called(headers):
    inner = Inner()
    assert ask("/v1/chat/completions", CHAT, inner=inner, **headers)[0] == 200
    scope, body = inner.seen[0]
    assert json.loads(body) == json.loads(CHAT)
    assert [value for name, value in scope["headers"] if name == b"content-length"] == [str(len(body)).encode()]
    assert [value for name, value in scope["headers"] if name == b"content-type"] == [b"application/json"]
    assert not [value for name, value in scope["headers"] if name == b"content-encoding"]


def test_a_body_that_says_it_is_too_long_is_refused_unread():
    assert ask("/v1/chat/completions", CHAT, content_length="10001")[1]["error"]["code"] == "too_large"
    assert ask("/v1/chat/completions", CHAT, content_length="9" * 5000)[0] == 413
    assert ask("/v1/chat/completions", CHAT, content_length="10000")[0] == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/appliance/broken", "/health/readiness"])
def test_a_request_with_two_lengths_is_refused_and_ends_its_connection(path):
    inner = Inner()
    sent = messages(path, CHAT, inner=inner, content_length="4", transfer_encoding="chunked")
    assert sent[0]["status"] == 400
    assert (b"connection", b"close") in sent[0]["headers"]
    assert inner.seen == []


def test_a_body_that_nobody_asked_for_does_not_reach_litellm():
    inner = Inner()
    assert ask("/v1/models", b"x" * 100, inner=inner, method="GET")[0] == 200
    assert inner.seen[0][1] == b""


class Failing:
    """Fails where LiteLLM would: before an answer, in the middle of one, or with one that nobody should see."""

    def __init__(self, how: str) -> None:
        self.how = how

    async def __call__(self, scope, receive, send) -> None:
        del scope, receive
        if self.how == "at once":
            raise KeyError("PROMPT")
        status = 200 if self.how in {"midway", "called a success"} else 500
        if self.how == "called a success":
            context.current.get().fault = faults.Fault(502, "GATEWAY_UPSTREAM", "the model server failed")
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"1000")]})
        await send({"type": "http.response.body", "body": b"PROMPT", "more_body": True})
        if self.how == "midway":
            raise KeyError("PROMPT")
        await send({"type": "http.response.body", "body": b"PROMPT"})
        if self.how == "answered and raised":
            raise KeyError("PROMPT")


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [
        ("at once", 500, "GATEWAY_UNHANDLED"),
        ("with text", 500, "GATEWAY_UNHANDLED"),
        ("answered and raised", 500, "GATEWAY_UNHANDLED"),
        ("called a success", 502, "GATEWAY_UPSTREAM"),
    ],
)
def test_what_nobody_caught_is_answered_in_our_form_with_the_requests_id(how, status, code):
    sent = messages("/v1/chat/completions", CHAT, inner=Failing(how))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    headers, error = dict(sent[0]["headers"]), json.loads(sent[1]["body"])["error"]
    assert (sent[0]["status"], error["code"]) == (status, code)
    assert headers[b"content-length"] == str(len(sent[1]["body"])).encode()
    assert error["request_id"].encode() == headers[b"x-appliance-request-id"]
    assert error["remedy"]
    assert b"PROMPT" not in sent[1]["body"]


def test_an_answer_that_has_begun_is_not_ended_as_if_it_were_whole():
    sent = messages("/v1/chat/completions", CHAT, inner=Failing("midway"))
    assert [message.get("more_body") for message in sent] == [None, True]


def test_the_query_string_says_nothing_to_litellm():
    inner = Inner()
    assert ask("/v1/chat/completions", CHAT, inner=inner, query=b"api-version=x")[0] == 200
    assert inner.seen[0][0]["query_string"] == b""


def test_a_refusal_has_code_cause_field_and_remedy():
    body = json.dumps({**json.loads(CHAT), "timeout": 1}).encode()
    status, answer = ask("/v1/chat/completions", body)
    assert status == 400
    assert answer["error"]["code"] == "GATEWAY_FIELD"
    assert answer["error"]["param"] == "timeout"
    assert answer["error"]["remedy"]


@pytest.mark.parametrize(
    "path", ["/v1%2fmodels", "/v1/%6dodels", "/%761/models/chat", "/appliance%2Fbroken", "/v1/models/%2e%2e"]
)
def test_a_path_in_disguise_does_not_exist(path):
    assert messages(path, method="GET")[0]["status"] == 404


def test_a_models_name_may_be_encoded():
    inner = Inner()
    messages("/v1/models/meta%2Fllama-3.1", method="GET", inner=inner)
    assert inner.seen[0][0]["path"] == "/v1/models/meta/llama-3.1"


def test_a_client_learns_neither_the_address_nor_the_headers_of_a_model_server():
    async def inner(scope, receive, send):
        del scope, receive
        told = [
            (b"x-litellm-model-id", b"small"), (b"x-litellm-model-api-base", b"http://user:secret@10.0.0.5/v1"),
            (b"llm_provider-set-cookie", b"session=secret"),
        ]  # fmt: skip
        await send({"type": "http.response.start", "status": 200, "headers": told})
        await send({"type": "http.response.body", "body": b"{}"})

    headers = dict(messages("/v1/chat/completions", CHAT, inner=inner)[0]["headers"])
    assert headers[b"x-litellm-model-id"] == b"small"
    assert not any(b"secret" in value for value in headers.values())
