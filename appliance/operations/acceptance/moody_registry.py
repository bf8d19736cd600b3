"""A stand-in S3 registry over TLS with moods: what a store, a switch or a firewall does on a bad day."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

BUCKET = "routers"
SILENCE_S = 15.0  # longer than any client of ours waits

Mood = Literal["well", "gone", "silent", "busy", "cut", "lying"]


class MoodyRegistry:
    """Serves the objects of a folder for reading.

    Args:
        folder: key -> file.
        certificate, key: PEM files of the server.

    Attributes:
        port: on loopback; the same after it was gone.
        mood: `well`; `gone` (connections are refused), `silent` (accepted, never answered), `busy` (503), `cut` (half a
            body), `lying` (the last byte of every body is another).
    """

    def __init__(self, folder: Path, certificate: Path, key: Path) -> None:
        self._folder = folder.resolve()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._context.load_cert_chain(certificate, key)
        self._server: _Server | None = None
        self._end = threading.Event()
        self.mood: Mood = "gone"
        self.port = 0

    def become(self, mood: Mood) -> None:
        """Change the mood."""
        self.mood = mood
        if mood == "gone":
            self._stop()
        elif self._server is None:
            self._start()

    def _start(self) -> None:
        self._end = threading.Event()
        handler = type("Handler", (_Handler,), {"registry": self})
        self._server = _Server(("127.0.0.1", self.port), handler)
        self.port = self._server.server_address[1]
        # the handshake is each connection's own business, in its own thread
        self._server.socket = self._context.wrap_socket(
            self._server.socket, server_side=True, do_handshake_on_connect=False
        )
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def _stop(self) -> None:
        if self._server is not None:
            self._end.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def wait_silently(self) -> None:
        """Say nothing for longer than a client waits; nothing at all where the server has gone."""
        self._end.wait(SILENCE_S)

    def read(self, path: str) -> bytes | None:
        """An object of the bucket; None where there is none."""
        bucket, _, key = unquote(urlsplit(path).path).lstrip("/").partition("/")
        file = (self._folder / key).resolve()
        if bucket != BUCKET or not file.is_relative_to(self._folder) or not file.is_file():
            return None
        return file.read_bytes()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is what is wanted here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SILENCE_S
    registry: MoodyRegistry

    def do_GET(self) -> None:
        """An object, whole or from an offset on."""
        if self.registry.mood in {"gone", "silent"}:  # gone: a connection from better days
            self.registry.wait_silently()
            self.close_connection = True
        elif self.registry.mood == "busy":
            self._answer(503, b"")
        elif (data := self.registry.read(self.path)) is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", kind="application/xml")
        else:
            self._object(data)

    def _object(self, data: bytes) -> None:
        tag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        if self.headers.get("if-none-match") == tag:
            self._answer(304, None, etag=tag)
            return
        if self.registry.mood == "lying":
            data = data[:-1] + bytes([data[-1] ^ 1])
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        if start is None:
            self._answer(200, data, etag=tag)
        else:
            span = f"bytes {start[1]}-{len(data) - 1}/{len(data)}"
            self._answer(206, data[int(start[1]) :], etag=tag, **{"content-range": span})

    def _answer(self, status: int, data: bytes | None, *, kind: str = "binary/octet-stream", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, **headers}.items():
            self.send_header(name, value)
        if data is not None:
            self.send_header("content-length", str(len(data)))
        self.end_headers()
        if data and self.registry.mood == "cut":
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif data:
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
