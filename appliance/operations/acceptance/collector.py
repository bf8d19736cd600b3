"""A stand-in for the zone's trace collector: OTLP over HTTP on loopback, as the gateway's exporter speaks it."""

from __future__ import annotations

import contextlib
import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MAX_BODY = 16 * 1024 * 1024  # bytes


@dataclass
class Collector:
    """What has arrived.

    Attributes:
        port: on loopback.
        spans: the attributes of each span.
    """

    port: int = 0
    spans: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        """As `telemetry.otlp_endpoint`."""
        return f"http://127.0.0.1:{self.port}"

    def with_value(self, name: str, value: object) -> dict[str, Any]:
        """Everything that the spans say of which an attribute has this value; empty where there is none."""
        return {key: each[key] for each in list(self.spans) if each.get(name) == value for key in each}


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """Collect until the block ends."""
    made = Collector()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"collector": made}))
    server.daemon_threads = True
    made.port = server.server_address[1]
    threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    collector: Collector

    def do_POST(self) -> None:
        """Take an export; metrics and logs are taken and left."""
        data = self.rfile.read(min(int(self.headers.get("content-length", 0)), _MAX_BODY))
        if self.headers.get("content-encoding") == "gzip":
            data = gzip.decompress(data)
        if self.path == "/v1/traces":
            self.collector.spans.extend(_spans(data))
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _spans(data: bytes) -> Iterator[dict[str, Any]]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    for resource in ExportTraceServiceRequest.FromString(data).resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield {each.key: getattr(each.value, each.value.WhichOneof("value") or "") for each in span.attributes}
