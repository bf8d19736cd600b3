"""A live OTLP receiver, HTTP and gRPC, both with mutual TLS: spans arrive, are redacted, and are appended as OTLP-JSON.

What it writes is what `train extract --traces` reads. A line is one span. Of its attributes those are kept that the
extraction reads, and what the gateway says of its own decisions; whatever else an instrumentation writes, under names
nobody can list, may hold a prompt or an answer. Prompts are cleaned and redacted before they are written.

HTTP speaks TLS 1.3 alone; gRPC's Python server takes 1.2 from who offers no more, and has no setting against it.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import json
import os
import ssl
import threading
import zlib
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from appliance.errors import FileError, TrainingError
from appliance.files import read_regular, translated
from appliance.training.extract import calls
from appliance.training.extract.calls import MESSAGES, Span, prompt_of
from appliance.training.extract.redaction import Redactor
from appliance.training.extract.traces import spans_of

MAX_REQUEST_BYTES = 16 * 1024**2
PROTOBUF = "application/x-protobuf"
IDS = frozenset(
    (*calls.CALL_ID, *calls.RESPONSE_ID, *calls.MODEL)
)  # not redacted: calls join by them, outcomes are told apart by them
READ = IDS.union(
    calls.COST, calls.FIRST_TOKEN_S, calls.JUDGE, calls.FEEDBACK,
    calls.PROPENSITY, calls.RETRIES, calls.TASK, calls.ERROR,
)  # fmt: skip
DECISIONS = ("router.", "llm.routing.")


@dataclass(frozen=True)
class Tls:
    """The receiver's certificate and the authority of those who may send, PEM files."""

    certificate: Path
    key: Path
    client_ca: Path


class SpanLog:
    """Appends spans to a file, one OTLP-JSON line each; safe to share between threads.

    Args:
        path: the file.
        redact: applied to prompts, and to whatever else is text and no id.

    Raises:
        FileError: FILE_LOCKED where another receiver writes there, FILE_PERMISSION, FILE_NOT_REGULAR.
    """

    def __init__(self, path: Path, redact: Redactor) -> None:
        self._redact = redact
        self._lock = threading.Lock()
        self.received = 0
        with translated(path):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._stream = os.fdopen(os.open(path, flags, 0o600), "ab", buffering=0)
            try:
                fcntl.flock(self._stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._stream.close()
                raise FileError("FILE_LOCKED", f"another receiver writes {path}", path=str(path)) from None
            size = os.fstat(self._stream.fileno()).st_size
            if size and os.pread(self._stream.fileno(), 1, size - 1) != b"\n":
                self._stream.write(b"\n")  # half a line of one that was killed must not swallow the next

    def append(self, spans: list[Span]) -> None:
        """Write spans and make them durable; what was acknowledged is on the disk, what was not leaves no half line.

        Raises:
            OSError: where the disk takes no more.
        """
        lines = b"".join(self._line(span) for span in spans)
        with self._lock:
            before = os.fstat(self._stream.fileno()).st_size
            try:
                if self._stream.write(lines) != len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._stream.fileno())
            except OSError:
                os.ftruncate(self._stream.fileno(), before)
                raise
            self.received += len(spans)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._stream.close()

    def _line(self, span: Span) -> bytes:
        kept = {name: self._kept(name, value) for name, value in span.attributes.items() if _wanted(name, value)}
        found = next((span.attributes[name] for name in MESSAGES if span.attributes.get(name)), None)
        prompt = self._redact(prompt_of(found, span.attributes))
        if prompt:
            kept["gen_ai.input.messages"] = json.dumps([{"role": "user", "content": prompt}], ensure_ascii=False)
        attributes = [{"key": name, "value": _any_value(value)} for name, value in kept.items()]
        document = {
            "traceId": span.trace_id,
            "spanId": span.span_id,
            "startTimeUnixNano": str(span.start_ns),
            "endTimeUnixNano": str(span.end_ns),
            "status": {"code": 2 if span.failed else 0},
            "attributes": attributes,
        }
        return json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [document]}]}]}).encode() + b"\n"

    def _kept(self, name: str, value: Any) -> Any:
        return self._redact(value) if isinstance(value, str) and name not in IDS else value


def _wanted(name: str, value: Any) -> bool:
    """Whether an attribute is kept: it is read or tells of a decision, and is a number or no longer than a name."""
    plain = calls.name_of(value) != "" if isinstance(value, str) else isinstance(value, int | float)
    return plain and (name in READ or name.startswith(DECISIONS))


def _any_value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    return {"stringValue": value}


@contextlib.contextmanager
def receiving(
    log: SpanLog, *, tls: Tls | None, http_address: tuple[str, int] | None, grpc_address: tuple[str, int] | None
) -> Iterator[tuple[int, int]]:
    """Receive until the block ends.

    Args:
        log: takes the spans.
        tls: certificate and client authority; None only for loopback addresses.
        http_address, grpc_address: host and port (0 takes a free one), or None for none.

    Yields:
        The ports of HTTP and gRPC, 0 where it is off.

    Raises:
        TrainingError: TRAINING_ARGUMENT for a plain receiver beyond loopback, TRAINING_SOURCE where a port is taken.
    """
    for address in (http_address, grpc_address):
        if tls is None and address is not None and address[0] not in ("127.0.0.1", "::1"):
            raise TrainingError("TRAINING_ARGUMENT", f"without TLS it listens on loopback only, not on {address[0]}")
    with contextlib.ExitStack() as stack:
        http_port = stack.enter_context(_http(log, tls, http_address)) if http_address else 0
        grpc_port = stack.enter_context(_grpc(log, tls, grpc_address)) if grpc_address else 0
        yield http_port, grpc_port


@contextlib.contextmanager
def _http(log: SpanLog, tls: Tls | None, address: tuple[str, int]) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 20

        def do_POST(self) -> None:
            status, body, kind = _answer(log, self)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
            """Say nothing: addresses and paths are nobody's business here."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A peer that fails the handshake or goes away is its own affair; the log shows what arrived."""

    try:
        server = Server(address, Handler)
    except OSError as error:
        raise TrainingError("TRAINING_SOURCE", f"{address[0]}:{address[1]} cannot be used: {error.strerror}") from None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(tls.certificate, tls.key)
        context.load_verify_locations(tls.client_ca)
        # the handshake belongs to the worker's thread, not to the one that accepts
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()


def _answer(log: SpanLog, request: BaseHTTPRequestHandler) -> tuple[int, bytes, str]:
    """OTLP/HTTP (specification 1.3): POST /v1/traces, protobuf or JSON, perhaps gzipped."""
    kind = (request.headers.get("Content-Type") or "").partition(";")[0].strip()
    length = request.headers.get("Content-Length", "")
    refused = _refusal(request.path, kind, length)
    if refused is not None:
        return refused, b"", "text/plain"
    try:
        data = request.rfile.read(int(length))
        if request.headers.get("Content-Encoding") == "gzip":
            data = _inflated(data)
        spans = _spans(data) if kind == PROTOBUF else list(spans_of(json.loads(data)))
    except (ValueError, RecursionError, zlib.error):
        return 400, b"", "text/plain"
    try:
        log.append(spans)
    except OSError:
        return 503, b"", "text/plain"  # the exporter keeps them and tries again
    return 200, b"" if kind == PROTOBUF else b"{}", kind


def _refusal(path: str, kind: str, length: str) -> int | None:
    """The status of a request that is not even read, or None."""
    if path != "/v1/traces":
        return 404
    if kind not in (PROTOBUF, "application/json"):
        return 415
    if not length.isdecimal():
        return 411
    return 413 if len(length) > 12 or int(length) > MAX_REQUEST_BYTES else None


def _inflated(data: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    inflated = stream.decompress(data, MAX_REQUEST_BYTES)
    if stream.unconsumed_tail:
        raise ValueError("larger than allowed once inflated")
    return inflated


def _spans(data: bytes) -> list[Span]:
    """Spans of a protobuf export request.

    Raises:
        ValueError: where the bytes are no such request.
    """
    from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    try:
        request = ExportTraceServiceRequest.FromString(data)
    except DecodeError as error:
        raise ValueError(str(error)) from None
    document = MessageToDict(request, use_integers_for_enums=True)
    return [_with_hex_ids(span) for span in spans_of(document)]


def _with_hex_ids(span: Span) -> Span:
    """Protobuf's JSON writes ids in base64, OTLP-JSON in hex."""
    trace_id, span_id = (base64.b64decode(value).hex() for value in (span.trace_id, span.span_id))
    return replace(span, trace_id=trace_id, span_id=span_id)


@contextlib.contextmanager
def _grpc(log: SpanLog, tls: Tls | None, address: tuple[str, int]) -> Iterator[int]:
    import grpc  # type: ignore[import-untyped]
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 (the protocol's name)
            try:
                log.append(_spans(request.SerializeToString()))
            except OSError as error:  # the exporter keeps them and tries again
                context.abort(grpc.StatusCode.UNAVAILABLE, f"the spans cannot be written: {error.strerror}")
            return trace_service_pb2.ExportTraceServiceResponse()

    options = [("grpc.max_receive_message_length", MAX_REQUEST_BYTES), ("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(4), options=options)
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)  # type: ignore[no-untyped-call]
    where = f"[{address[0]}]:{address[1]}" if ":" in address[0] else f"{address[0]}:{address[1]}"
    try:
        if tls is None:
            port = server.add_insecure_port(where)
        else:
            pem = [read_regular(path, max_bytes=1024**2) for path in (tls.key, tls.certificate, tls.client_ca)]
            credentials = grpc.ssl_server_credentials([(pem[0], pem[1])], pem[2], require_client_auth=True)
            port = server.add_secure_port(where, credentials)
    except RuntimeError:
        port = 0
    if not port:
        raise TrainingError("TRAINING_SOURCE", f"{where} cannot be used for gRPC")
    server.start()
    try:
        yield int(port)
    finally:
        server.stop(grace=1).wait()
