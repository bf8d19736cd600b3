"""The ASGI edge by itself: what reaches the inner application, and what becomes of a report that fails."""

import asyncio
import json

import pytest

from appliance.errors import GatewayError
from appliance.gateway.access import KeyRing
from appliance.gateway.application import Application, Report
from appliance.gateway.metrics import Metrics

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


def ask(path: str, body: bytes = b"", *, inner=None, method: str = "POST", **headers: str) -> tuple[int, dict]:
    application = Application(
        inner or Inner(), started=None, ready=lambda: True, reports={"/appliance/broken": Report(broken)},
        keys=KeyRing(MASTER), max_body_bytes=10_000, metrics=Metrics(),
    )  # fmt: skip
    given = {"authorization": f"Bearer {MASTER}", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": "http", "path": path, "method": method, "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }  # fmt: skip
    sent: list[dict] = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    asyncio.run(application(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


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
    assert body == CHAT
    assert [value for name, value in scope["headers"] if name == b"content-type"] == [b"application/json"]
    assert not [value for name, value in scope["headers"] if name == b"content-encoding"]
