"""A stand-in model server: answers chat completions with its own name, and can be stopped and started."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MAX_BODY = 16 * 1024 * 1024  # bytes


class StandIn:
    """One model server on a free loopback port.

    Attributes:
        name: what it answers with.
        port: where it listens; the same after a restart.
        headers: of the last request, lower case.
    """

    def __init__(self, name: str) -> None:
        self.name, self.port = name, 0
        self.headers: dict[str, str] = {}
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen."""
        handler = _handler(self)
        self._server = _Server(("127.0.0.1", self.port), handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


@contextlib.contextmanager
def stand_ins(names: Iterator[str] | list[str]) -> Iterator[dict[str, StandIn]]:
    """Several, until the block ends."""
    made = {name: StandIn(name) for name in names}
    try:
        for each in made.values():
            each.start()
        yield made
    finally:
        for each in made.values():
            each.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """A chat completion."""
            length = min(int(self.headers.get("content-length", 0)), _MAX_BODY)
            body: dict[str, Any] = json.loads(self.rfile.read(length) or b"{}")
            stand_in.headers = {name.lower(): value for name, value in self.headers.items()}
            answer = {
                "id": "chatcmpl-stand-in", "object": "chat.completion", "created": 0,
                "model": body.get("model", stand_in.name),
                "choices": [
                    {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": stand_in.name}}
                ],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }  # fmt: skip
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler
