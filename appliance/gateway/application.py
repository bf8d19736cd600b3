"""The ASGI edge: a short list of paths reaches LiteLLM, `/appliance/...` is ours, everything else does not exist.

A request passes in this order: path, key, size, form of the body, the key's groups. Whatever fails there never reaches
LiteLLM, whose own handling of it needs a database engine.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from appliance.errors import ApplianceError, catalogue
from appliance.gateway import context, edge, faults, pages
from appliance.gateway.access import KeyRing
from appliance.gateway.edge import Message, Receive, Refused, Scope, Send
from appliance.gateway.faults import Fault
from appliance.gateway.metrics import Metrics
from appliance.settings import Access

log = logging.getLogger("appliance.request")
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
Query = Mapping[str, list[str]]
Answer = Callable[[Query], Awaitable[tuple[int, Any]]]


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
        access: longest body, and fields of bodies that the operator admits.
        metrics: counts answers.
    """

    def __init__(
        self,
        inner: Asgi,
        *,
        started: Callable[[], Awaitable[None]],
        ready: Callable[[], bool],
        reports: Mapping[str, Report],
        keys: KeyRing,
        access: Access,
        metrics: Metrics,
    ) -> None:
        self._inner, self._started, self._ready = inner, started, ready
        self._reports, self._keys, self.access = reports, keys, access
        self._metrics = metrics
        self._pages = pages.load()
        self.startup_failure: str | None = None
        self.startup_error: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, as ASGI 3 defines it."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008, "reason": "not served"})
        elif edge.has_two_lengths(scope["headers"]):
            close = [(b"connection", b"close"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 400, "headers": close})
            await send({"type": "http.response.body", "body": b""})
        elif not edge.is_as_written(scope):
            await _refuse(send, 404, "not_found", "this path does not exist on the appliance")
        elif scope["path"].startswith("/appliance/"):

            async def parting(message: Message) -> None:
                await send(self._parting(message))

            await self._report(scope, parting)
        else:
            await self._counted(scope, receive, send)

    def _parting(self, message: Message) -> Message:
        """While draining, the next request belongs on a connection to whoever comes next: every answer says so."""
        if message["type"] != "http.response.start" or self._ready():
            return message
        return {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}

    async def _counted(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(message["status"])
            await send(self._parting(message))

        self._metrics.running += 1
        try:
            await self._request(scope, receive, counted)
        except Refused as refused:
            await _refuse(counted, refused.status, refused.code, str(refused), param=refused.param)
        finally:
            self._metrics.running -= 1

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, method = scope["path"], scope["method"]
        with_body = bool(edge.WITH_BODY.fullmatch(path))
        if edge.HEALTH.fullmatch(path) and method == "GET":
            ready = self._ready() or not path.endswith("readiness")
            await _json(send, 200 if ready else 503, {"status": "healthy" if ready else "draining"})
            return
        if not with_body and not edge.WITHOUT_BODY.fullmatch(path):
            raise Refused(404, "not_found", "this path does not exist on the appliance")
        if method != ("POST" if with_body else "GET"):
            raise Refused(405, "method_not_allowed", f"use {'POST' if with_body else 'GET'}")
        principal = self._keys.authenticate(scope["headers"])
        if principal is None:
            raise Refused(401, "invalid_api_key", "no valid key was given")
        document: dict[str, Any] = {}
        body: bytes | None = None
        headers = self._keys.as_master(scope["headers"])
        if with_body:
            body = await edge.read_body(receive, self.access.max_body_bytes, scope["headers"])
            document = edge.checked(body, principal, path, self.access.fields)
            body = edge.handed_on(document, path)
        elif not principal.is_master:
            await _json(send, 200, edge.models(path, principal))
            return
        request = context.RequestContext(principal, *edge.wishes(scope["headers"], document, principal))
        scope = {**scope, "headers": edge.forwarded(headers, body), "query_string": b""}
        await self._forward(scope, body, receive, send, request)

    async def _forward(
        self, scope: Scope, body: bytes | None, receive: Receive, send: Send, request: context.RequestContext
    ) -> None:
        """Ask LiteLLM, and again while not everything has been tried; what fails then is told in our words.

        Nothing of an attempt that failed has left: LiteLLM answers a stream when it has the stream's first part.
        """
        token = context.current.set(request)
        try:
            while True:
                before = len(request.decisions)
                fault = await self._attempt({**scope}, edge.replay(body or b"", receive), send, request)
                if fault is None:
                    return
                if not request.again or len(request.decisions) == before:
                    break
                log.warning("asked again", extra={"request_id": request.id, "code": fault.code})
                request.fault, request.error, request.again = None, None, False
            faults.record(request.error, fault, request_id=request.id)
            await _failed(send, fault, request)
        finally:
            request.error = None  # it holds the frames that hold the request
            context.current.reset(token)

    async def _attempt(
        self, scope: Scope, receive: Receive, send: Send, request: context.RequestContext
    ) -> Fault | None:
        """Why it failed, where nothing of it has been sent."""
        started, fault = False, None

        async def annotated(message: Message) -> None:
            nonlocal started, fault
            if not started:
                fault = fault or _fault(message["status"], request)
                if fault is not None:
                    return
                started = True
                message["headers"] = [*edge.answered(message.get("headers", ())), *_told(request)]
            await send(message)

        try:
            await self._inner(scope, receive, annotated)
        except Exception as error:  # noqa: BLE001 (the last place that can answer)
            request.error = error
            request.fault = faults.judge(error, asked=bool(request.decisions)) or faults.UNHANDLED
            fault = fault or request.fault
        if not started:
            return fault
        if request.fault is not None:  # a stream that broke off: its client has seen as much
            faults.record(request.error, request.fault, request_id=request.id)
        return None

    async def _report(self, scope: Scope, send: Send) -> None:
        if scope["path"] in self._pages and scope["method"] == "GET":
            kind, data = self._pages[scope["path"]]
            await _send(send, 200, data, kind, pages.HEADERS)
            return
        report = self._reports.get(scope["path"])
        if report is None:
            await _refuse(send, 404, "not_found", "this path does not exist on the appliance")
            return
        principal = None if report.open else self._keys.authenticate(scope["headers"])
        if not report.open and principal is None:
            await _refuse(send, 401, "invalid_api_key", "a key that may read reports is needed")
        elif principal is not None and not (principal.is_master or (principal.reports and report.method == "GET")):
            await _refuse(send, 403, "forbidden", "this key may not do that")
        elif scope["method"] != report.method:
            await _refuse(send, 405, "method_not_allowed", f"use {report.method}")
        else:
            raw = scope.get("query_string", b"").decode("latin-1")
            try:
                query = parse_qs(raw, keep_blank_values=True, max_num_fields=20)
            except ValueError:
                await _refuse(send, 400, "query", "too many parameters")
                return
            try:
                status, answer = await report.answer(query)
            except ApplianceError as error:  # a file or a worker that does not answer now
                status, answer = 503, error.as_dict()
            await (_text if isinstance(answer, str) else _json)(send, status, answer)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def observed(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                self.startup_failure = str(message.get("message", ""))
            elif message["type"] == "lifespan.startup.complete":
                try:
                    await self._started()
                except Exception as error:  # noqa: BLE001 (told to the server in the protocol's own way)
                    self.startup_error, self.startup_failure = error, str(error)
                    message = {"type": "lifespan.startup.failed", "message": str(error)}
            await send(message)

        await self._inner(scope, receive, observed)


async def _json(send: Send, status: int, body: Any) -> None:
    await _send(send, status, json.dumps(body, ensure_ascii=False, default=str).encode(), b"application/json")


async def _text(send: Send, status: int, body: str) -> None:
    await _send(send, status, body.encode(), b"text/plain; version=0.0.4; charset=utf-8")


async def _send(send: Send, status: int, data: bytes, kind: bytes, more: Iterable[tuple[bytes, bytes]] = ()) -> None:
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(data)).encode()),
        (b"cache-control", b"no-store"),
        *more,
    ]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def _refuse(send: Send, status: int, code: str, message: str, *, param: str | None = None) -> None:
    error = {"message": message, "type": "appliance", "param": param, "code": code}
    if code in catalogue():
        error["remedy"] = catalogue()[code].remedy
    await _json(send, status, {"error": error})


def _fault(status: int, request: context.RequestContext) -> Fault | None:
    """What stands in for LiteLLM's answer: an error of the server, and a failure that calls itself a success."""
    if status >= 500:
        return request.fault or faults.UNHANDLED
    return request.fault if status < 400 or status in faults.OURS else None


async def _failed(send: Send, fault: Fault, request: context.RequestContext) -> None:
    error = {
        "message": f"{fault.message} (request {request.id})",
        "type": "appliance",
        "param": None,
        "code": fault.code,
        "remedy": catalogue()[fault.code].remedy,
        "request_id": request.id,
    }
    data = json.dumps({"error": error}, ensure_ascii=False).encode()
    headers = _told(request)
    if fault.retry_after_s is not None:
        headers.append((b"retry-after", str(fault.retry_after_s).encode()))
    await _send(send, fault.status, data, b"application/json", headers)


def _told(request: context.RequestContext) -> list[tuple[bytes, bytes]]:
    """What every answer says of its request: its id, and who was chosen by what."""
    headers = [(b"x-appliance-request-id", request.id.encode())]
    if request.decisions:
        last = request.decisions[-1]
        headers += [
            (b"x-appliance-deployment", _header(last.selected or "")),
            (b"x-appliance-routing", _header(f"{last.strategy}; {last.outcome}; {last.reason}")),
        ]
    return headers


def _header(text: str) -> bytes:
    return "".join(c if " " <= c <= "~" else "?" for c in text)[:512].encode()
