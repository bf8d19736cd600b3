"""Jaeger's query API over TLS, as its handlers answer it (`cmd/query/app`, both versions), over traces held in memory.

No Jaeger binary is in any registry that the project reaches; what is spoken here follows Jaeger's published handlers:
names of parameters, both ends of a window included, a limit that cuts without a word, 404 for "no traces" in version 3.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Trace:
    """One trace of one span."""

    trace_id: str
    start_us: int
    attributes: dict[str, str | float]


@dataclass
class Jaeger:
    """A running query service.

    Attributes:
        traces: what it holds of the service `litellm`.
        asked: paths and queries, in order.
        answer: what it answers with whatever is asked, or None.
        clock: its own time, as its answers tell it, or None for one that tells none.
    """

    traces: list[Trace]
    port: int = 0
    asked: list[str] = field(default_factory=list)
    answer: tuple[int, bytes] | None = None
    clock: datetime | None = None

    def reply(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        """Status and document for a question."""
        if path == "/api/traces":
            low, high, limit = int(query["start"]), int(query["end"]), int(query["limit"])
            return 200, {"data": [_legacy(t) for t in self._found(query["service"], low, high, limit)], "errors": None}
        if path == "/api/v3/traces":
            low, high = (_microseconds(query[f"query.start_time_{edge}"]) for edge in ("min", "max"))
            found = self._found(query["query.service_name"], low, high, int(query["query.num_traces"]))
            if not found:
                return 404, {"error": {"httpCode": 404, "message": "No traces found"}}
            return 200, {"result": {"resourceSpans": [{"scopeSpans": [{"spans": [_otlp(t) for t in found]}]}]}}
        return 404, {"error": {"httpCode": 404, "message": "not found"}}

    def _found(self, service: str, low: int, high: int, limit: int) -> Sequence[Trace]:
        held = self.traces if service == "litellm" else []
        return sorted((t for t in held if low <= t.start_us <= high), key=lambda t: -t.start_us)[:limit]


def _microseconds(text: str) -> int:
    time = datetime.fromisoformat(text)
    return int(time.replace(microsecond=0).timestamp()) * 1_000_000 + time.microsecond


def _legacy(trace: Trace) -> dict[str, Any]:
    tags = [{"key": key, "type": "string", "value": value} for key, value in trace.attributes.items()]
    span = {"traceID": trace.trace_id, "spanID": "a", "startTime": trace.start_us, "duration": 1500, "tags": tags}
    return {"traceID": trace.trace_id, "spans": [span], "processes": {}}


def _otlp(trace: Trace) -> dict[str, Any]:
    def value(item: str | float) -> dict[str, Any]:
        return {"stringValue": item} if isinstance(item, str) else {"doubleValue": item}

    return {
        "traceId": trace.trace_id, "spanId": "a", "startTimeUnixNano": str(trace.start_us * 1000),
        "endTimeUnixNano": str(trace.start_us * 1000 + 1_500_000),
        "attributes": [{"key": key, "value": value(item)} for key, item in trace.attributes.items()],
    }  # fmt: skip


@contextlib.contextmanager
def jaeger(traces: list[Trace], certificate: Path, key: Path, client_ca: Path) -> Iterator[Jaeger]:
    """Serve over mutual TLS on loopback until the block ends."""
    state = Jaeger(traces)

    class Handler(BaseHTTPRequestHandler):
        timeout = 20

        def do_GET(self) -> None:
            state.asked.append(self.path)
            parts = urlsplit(self.path)
            status, document = state.reply(parts.path, {k: v[0] for k, v in parse_qs(parts.query).items()})
            data = json.dumps(document).encode()
            if state.answer is not None:
                status, data = state.answer
            self.send_response_only(status)
            if state.clock is not None:
                self.send_header("Date", format_datetime(state.clock, usegmt=True))
            self.send_header("Content-Type", "application/json")
            self.end_headers()  # as Jaeger: no length, the connection's end is the answer's
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            return

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            return

    server = Server(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(client_ca)
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
