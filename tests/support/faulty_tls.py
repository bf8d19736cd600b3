"""TLS servers that misbehave on purpose, each in one way."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path

from tests.support.small_authority import Identity


@dataclass(frozen=True)
class Request:
    """One request as it came in."""

    line: str
    headers: dict[str, str]
    number: int  # over all connections, from 0


@dataclass
class FaultyServer:
    """What a misbehaving server has seen."""

    port: int
    connections: int = 0
    requests: list[Request] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        """`127.0.0.1:port`."""
        return f"127.0.0.1:{self.port}"


Answer = Callable[[ssl.SSLSocket, Request], None]
BeforeTls = Callable[[socket.socket], None]


@contextlib.contextmanager
def faulty_server(
    identity: Identity,
    *answers: Answer,
    before_tls: BeforeTls | None = None,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    client_ca_pem: bytes | None = None,
) -> Iterator[FaultyServer]:
    """A TLS server that answers as told.

    Args:
        identity: its certificate.
        answers: one for each request, in order; the last one repeats. A closed connection ends its turn.
        before_tls: does what it likes with the accepted connection, instead of TLS.
        newest: the newest TLS version it speaks.
        client_ca_pem: demands a client certificate of this authority.
    """
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    server = FaultyServer(listener.getsockname()[1])
    stopping = threading.Event()
    context = _server_context(identity, newest, client_ca_pem)
    lock = threading.Lock()

    def converse(plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain:
            plain.settimeout(60)
            if before_tls is not None:
                before_tls(plain)
                stopping.wait(60)
                return
            with context.wrap_socket(plain, server_side=True) as secure:
                while (request := _read_request(secure, server, lock)) is not None:
                    answers[min(request.number, len(answers) - 1)](secure, request)

    def accept() -> None:
        while not stopping.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            server.connections += 1
            threading.Thread(target=converse, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server
    finally:
        stopping.set()
        listener.close()


def _server_context(identity: Identity, newest: ssl.TLSVersion, client_ca_pem: bytes | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = newest
    with tempfile.TemporaryDirectory() as directory:
        certificate, key, _ = identity.write(Path(directory), "server")
        context.load_cert_chain(certificate, key)
    if client_ca_pem is not None:
        context.load_verify_locations(cadata=client_ca_pem.decode())
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _read_request(connection: ssl.SSLSocket, server: FaultyServer, lock: threading.Lock) -> Request | None:
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = connection.recv(65536)
        if not chunk:
            return None
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    line, *rest = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in rest)}
    missing = int(headers.get("content-length", "0")) - len(body)
    while missing > 0 and (chunk := connection.recv(min(missing, 65536))):
        missing -= len(chunk)
    with lock:
        request = Request(line, headers, len(server.requests))
        server.requests.append(request)
    return request


def answer(
    body: bytes = b"", *, status: str = "200 OK", headers: Mapping[str, str] | None = None, length: int | None = -1
) -> Answer:
    """A whole answer; `length` is the Content-Length announced, -1 for the true one, None for none."""

    def send(connection: ssl.SSLSocket, _request: Request) -> None:
        fields = {"ETag": '"tag"', "Date": formatdate(usegmt=True), **(headers or {})}
        if length is not None:
            fields["Content-Length"] = str(len(body) if length == -1 else length)
        connection.sendall(_head(status, fields) + body)
        if length != -1:
            connection.close()

    return send


def ranged(body: bytes, *, break_after: int | None = None, etag: str = "tag") -> Answer:
    """An honest answer to a ranged request; with `break_after` the connection is reset after so many bytes."""

    def send(connection: ssl.SSLSocket, request: Request) -> None:
        wanted = request.headers.get("range", "bytes=0-")
        start = int(wanted.removeprefix("bytes=").split("-")[0])
        rest = body[start:]
        fields = {"ETag": f'"{etag}"', "Content-Length": str(len(rest))}
        if request.headers.get("if-match", f'"{etag}"') != f'"{etag}"':
            error = b"<Error><Code>PreconditionFailed</Code><Message>changed</Message></Error>"
            fields = {"Content-Length": str(len(error)), "Content-Type": "application/xml"}
            connection.sendall(_head("412 Precondition Failed", fields) + error)
            return
        status = "200 OK"
        if start:
            status = "206 Partial Content"
            fields["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        connection.sendall(_head(status, fields) + rest[:break_after])
        if break_after is not None and break_after < len(rest):
            reset(connection)

    return send


def s3_error(code: str, status: str, *, headers: Mapping[str, str] | None = None) -> Answer:
    """An S3 error document."""
    body = f"<Error><Code>{code}</Code><Message>{code} it is</Message></Error>".encode()
    return answer(body, status=status, headers={"Content-Type": "application/xml", **(headers or {})})


def silence(connection: ssl.SSLSocket, _request: Request) -> None:
    """Take the request and never answer."""
    time.sleep(60)
    connection.close()


def drip(data: bytes, *, every_s: float, first: bytes = b"") -> Answer:
    """Send `first` at once, then one byte after the other."""

    def send(connection: ssl.SSLSocket, _request: Request) -> None:
        connection.sendall(first)
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(every_s)

    return send


def reset_at_once(connection: ssl.SSLSocket, _request: Request) -> None:
    """Answer a request with RST."""
    reset(connection)


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def drip_handshake(identity: Identity, *, every_s: float) -> BeforeTls:
    """Speak TLS honestly, one byte at a time."""

    def converse(plain: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = _server_context(identity, ssl.TLSVersion.TLSv1_3, None).wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                server.do_handshake()
                return
            except ssl.SSLWantReadError:
                for byte in outgoing.read():
                    plain.sendall(bytes([byte]))
                    time.sleep(every_s)
                chunk = plain.recv(65536)
                if not chunk:
                    return
                incoming.write(chunk)

    return converse


def _head(status: str, fields: Mapping[str, str]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1")
