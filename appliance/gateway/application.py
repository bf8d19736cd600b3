"""The ASGI edge: a short list of paths reaches LiteLLM, `/appliance/...` is ours, everything else does not exist."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from appliance.gateway import context

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

ALLOWED = re.compile(
    r"/(?:v1/)?(?:chat/completions|completions|embeddings|responses|messages|messages/count_tokens|rerank|models"
    r"|models/[A-Za-z0-9._:@+-]{1,256})|/health/(?:liveliness|liveness|readiness)"
)
Report = Callable[[MutableMapping[str, list[str]]], Awaitable[tuple[int, Any]]]


class Application:
    """Wraps LiteLLM's application.

    Args:
        inner: LiteLLM's ASGI application.
        started: awaited once when the inner application has started, before the server accepts.
        ready: whether new requests are welcome.
        open_reports: path -> report that anybody may read.
        reports: path -> report that needs the master key.
        master_key: compared in constant time.
    """

    def __init__(
        self,
        inner: Asgi,
        *,
        started: Callable[[], Awaitable[None]],
        ready: Callable[[], bool],
        open_reports: dict[str, Report],
        reports: dict[str, tuple[str, Report]],
        master_key: str,
    ) -> None:
        self._inner, self._started, self._ready = inner, started, ready
        self._open_reports, self._reports = open_reports, reports
        self._master_key = master_key.encode()
        self.startup_failure: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI 3 defines it."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": "not served"})
        elif scope["path"].startswith("/appliance/"):
            await self._report(scope, send)
        elif ALLOWED.fullmatch(scope["path"]):
            if scope["path"] == "/health/readiness" and not self._ready():
                await _json(send, 503, {"status": "draining"})
                return
            await self._forward(scope, receive, send)
        else:
            await _json(send, 404, _error("not_found", "this path does not exist on the appliance"))

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = context.RequestContext()
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

    async def _report(self, scope: Scope, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        if path in self._open_reports and method in {"GET", "HEAD"}:
            await _json(send, *await self._open_reports[path]({}))
            return
        if path not in self._reports:
            await _json(send, 404, _error("not_found", "this path does not exist on the appliance"))
            return
        allowed_method, report = self._reports[path]
        if not self._authorised(scope):
            await _json(send, 401, _error("unauthorised", "the master key is needed"), [(b"www-authenticate", b"Bearer")])
        elif method != allowed_method:
            await _json(send, 405, _error("method", f"use {allowed_method}"), [(b"allow", allowed_method.encode())])
        else:
            query = parse_qs(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True, max_num_fields=20)
            await _json(send, *await report(query))

    def _authorised(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, b"Bearer " + self._master_key)

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


async def _json(send: Send, status: int, body: Any, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    data = json.dumps(body, ensure_ascii=False, default=str).encode()
    fixed = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": fixed + (headers or [])})
    await send({"type": "http.response.body", "body": data})


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": kind}}


def _header(text: str) -> bytes:
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:512].encode()
