"""The ASGI edge: a short list of paths reaches LiteLLM, `/appliance/...` is ours, everything else does not exist.

A request passes in this order: path, key, size, form of the body, the key's groups. Whatever fails there never reaches
LiteLLM, whose own handling of it needs a database engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

import orjson

from appliance.gateway import context
from appliance.gateway.access import KeyRing, Principal

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
Query = Mapping[str, list[str]]
Answer = Callable[[Query], Awaitable[tuple[int, Any]]]

WITH_BODY = re.compile(
    r"/(?:v1/)?(?:chat/completions|completions|embeddings|responses|messages|messages/count_tokens|rerank)"
)
WITHOUT_BODY = re.compile(r"/(?:v1/)?models(?:/[A-Za-z0-9._:@+-]{1,256})?")
HEALTH = re.compile(r"/health/(?:liveliness|liveness|readiness)")


@dataclass(frozen=True)
class Report:
    """One of our own paths.

    Attributes:
        answer: query -> status and JSON (a string is sent as plain text).
        method: GET or POST.
        open: whether it needs no key.
    """

    answer: Answer
    method: str = "GET"
    open: bool = False


class Application:
    """Wraps LiteLLM's application.

    Args:
        inner: LiteLLM's ASGI application.
        started: awaited once when the inner application has started, before the server accepts.
        ready: whether new requests are welcome.
        reports: path -> report of ours.
        keys: who may ask.
        max_body_bytes: longest request body.
    """

    def __init__(
        self,
        inner: Asgi,
        *,
        started: Callable[[], Awaitable[None]],
        ready: Callable[[], bool],
        reports: Mapping[str, Report],
        keys: KeyRing,
        max_body_bytes: int,
    ) -> None:
        self._inner, self._started, self._ready = inner, started, ready
        self._reports, self._keys, self._max_body_bytes = reports, keys, max_body_bytes
        self.startup_failure: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI 3 defines it."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": "not served"})
        elif scope["path"].startswith("/appliance/"):
            await self._report(scope, send)
        else:
            await self._request(scope, receive, send)

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        with_body = bool(WITH_BODY.fullmatch(path))
        if HEALTH.fullmatch(path) and method == "GET":
            ready = self._ready() or not path.endswith("readiness")
            await _json(send, 200 if ready else 503, {"status": "healthy" if ready else "draining"})
            return
        if not with_body and not WITHOUT_BODY.fullmatch(path):
            await _refuse(send, 404, "not_found", "this path does not exist on the appliance")
            return
        if method != ("POST" if with_body else "GET"):
            await _refuse(send, 405, "method_not_allowed", f"use {'POST' if with_body else 'GET'}")
            return
        principal = self._keys.authenticate(scope["headers"])
        if principal is None:
            await _refuse(send, 401, "invalid_api_key", "no valid key was given")
            return
        if with_body:
            body = await _read(receive, self._max_body_bytes)
            if body is None:
                await _refuse(send, 413, "too_large", f"the body is longer than {self._max_body_bytes} bytes")
                return
            problem = _problem(body, principal)
            if problem is not None:
                await _refuse(send, *problem)
                return
            receive = _replay(body, receive)
        elif not principal.is_master:
            await self._models(path, principal, send)
            return
        await self._forward({**scope, "headers": self._keys.as_master(scope["headers"])}, receive, send, principal)

    async def _forward(self, scope: Scope, receive: Receive, send: Send, principal: Principal) -> None:
        request = context.RequestContext(principal)
        token = context.current.set(request)

        async def annotated(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message.get("headers", ()), (b"x-appliance-request-id", request.id.encode())]
                if request.decisions:
                    last = request.decisions[-1]
                    headers += [
                        (b"x-appliance-deployment", _header(last.selected or "")),
                        (b"x-appliance-routing", _header(f"{last.strategy}; {last.outcome}; {last.reason}")),
                    ]
                message["headers"] = headers
            await send(message)

        try:
            await self._inner(scope, receive, annotated)
        finally:
            context.current.reset(token)

    async def _models(self, path: str, principal: Principal, send: Send) -> None:
        """The model list of an application's key: its groups and nothing else."""
        groups = sorted(principal.groups or ())
        entries = [{"id": group, "object": "model", "created": 0, "owned_by": "appliance"} for group in groups]
        asked = path.partition("models/")[2]
        if not asked:
            await _json(send, 200, {"object": "list", "data": entries})
        elif asked in groups:
            await _json(send, 200, entries[groups.index(asked)])
        else:
            await _refuse(send, 404, "model_not_found", "no such model for this key")

    async def _report(self, scope: Scope, send: Send) -> None:
        report = self._reports.get(scope["path"])
        if report is None:
            await _refuse(send, 404, "not_found", "this path does not exist on the appliance")
            return
        principal = None if report.open else self._keys.authenticate(scope["headers"])
        if not report.open and (principal is None or not principal.is_master):
            await _refuse(send, 401, "invalid_api_key", "the master key is needed")
        elif scope["method"] != report.method:
            await _refuse(send, 405, "method_not_allowed", f"use {report.method}")
        else:
            raw = scope.get("query_string", b"").decode("latin-1")
            try:
                query = parse_qs(raw, keep_blank_values=True, max_num_fields=20)
            except ValueError:
                await _refuse(send, 400, "query", "too many parameters")
                return
            status, answer = await report.answer(query)
            await (_text if isinstance(answer, str) else _json)(send, status, answer)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def observed(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                self.startup_failure = str(message.get("message", ""))
            elif message["type"] == "lifespan.startup.complete":
                try:
                    await self._started()
                except Exception as error:  # noqa: BLE001 (told to the server in the protocol's own way)
                    self.startup_failure = str(error)
                    message = {"type": "lifespan.startup.failed", "message": str(error)}
            await send(message)

        await self._inner(scope, receive, observed)


async def _read(receive: Receive, limit: int) -> bytes | None:
    """The whole body; None where it is longer than `limit` bytes."""
    parts: list[bytes] = []
    length = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b""
        parts.append(message.get("body", b""))
        length += len(parts[-1])
        if length > limit:
            return None
        if not message.get("more_body", False):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Give the body once more, then whatever the connection says."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _problem(body: bytes, principal: Principal) -> tuple[int, str, str] | None:
    """What is wrong with a body before anybody acts on it: status, code, message."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return 400, "invalid_json", f"the body is not JSON: {error}"[:200]
    if not isinstance(document, dict):
        return 400, "invalid_request_error", "the body is not a JSON object"
    model = document.get("model")
    if not isinstance(model, str) or not model:
        return 400, "invalid_request_error", "model must name a model group"
    if not principal.may_use(model):
        return 403, "model_not_allowed", "this key does not reach that model group"
    messages = document.get("messages", [])
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return 400, "invalid_request_error", "messages must be a list of objects"
    return None


async def _json(send: Send, status: int, body: Any) -> None:
    await _send(send, status, json.dumps(body, ensure_ascii=False, default=str).encode(), b"application/json")


async def _text(send: Send, status: int, body: str) -> None:
    await _send(send, status, body.encode(), b"text/plain; version=0.0.4; charset=utf-8")


async def _send(send: Send, status: int, data: bytes, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(data)).encode()), (b"cache-control", b"no-store")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def _refuse(send: Send, status: int, code: str, message: str) -> None:
    await _json(send, status, {"error": {"message": message, "type": "appliance", "param": None, "code": code}})


def _header(text: str) -> bytes:
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:512].encode()
