"""A stand-in model server: answers chat completions with its own name, whole or streamed; it can be stopped."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MAX_BODY = 16 * 1024 * 1024  # bytes
SLOW = "take your time"  # a prompt that begins so is streamed over a second


class StandIn:
    """One model server on a free loopback port.

    Attributes:
        name: what it answers with.
        port: where it listens; the same after a restart, and nobody else's meanwhile.
        headers: of the last request, lower case.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._place = socket.socket()  # bound and never listening: whoever connects is refused while the server is down
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self.port: int = self._place.getsockname()[1]
        self.headers: dict[str, str] = {}
        self._server: _Server | None = None

    def as_deployment(self, group: str) -> dict[str, Any]:
        """Its entry in LiteLLM's `model_list`; its name is its id."""
        parameters = {
            "model": f"openai/{self.name}", "api_base": f"http://127.0.0.1:{self.port}/v1", "api_key": "none"
        }  # fmt: skip
        return {"model_name": group, "litellm_params": parameters, "model_info": {"id": self.name}}

    def start(self) -> None:
        """Listen; nothing where it does already."""
        if self._server is not None:
            return
        handler = _handler(self)
        self._server = _Server(("127.0.0.1", self.port), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections from now on, and hang up on requests over those that stand, as if the power had failed.

        What is being answered is answered to its end: no gateway could mend a stream that has begun.
        """
        if self._server is not None:
            self._server.stopped = True
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        """Stop for good."""
        self.stop()
        self._place.close()


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
            each.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True
    stopped = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who hangs up has his reasons: a gateway that was killed, a client that did not wait."""


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """A chat completion."""
            if self.server.stopped:  # type: ignore[attr-defined]
                self.close_connection = True
                return
            length = min(int(self.headers.get("content-length", 0)), _MAX_BODY)
            body: dict[str, Any] = json.loads(self.rfile.read(length) or b"{}")
            stand_in.headers = {name.lower(): value for name, value in self.headers.items()}
            if body.get("stream"):
                self._stream(slow=str(body.get("messages", [{}])[-1].get("content", "")).startswith(SLOW))
                return
            message = {"role": "assistant", "content": stand_in.name}
            answer = {
                **_frame("chat.completion", stand_in.name, {"index": 0, "finish_reason": "stop", "message": message}),
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
            }
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _stream(self, *, slow: bool) -> None:
            """Its name letter by letter, as server-sent events."""
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            self.close_connection = True
            pieces: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
            pieces += [{"content": letter} for letter in stand_in.name]
            for number, delta in enumerate([*pieces, {}]):
                reason = "stop" if number == len(pieces) else None
                choice = {"index": 0, "finish_reason": reason, "delta": delta}
                event = json.dumps(_frame("chat.completion.chunk", stand_in.name, choice))
                self.wfile.write(f"data: {event}\n\n".encode())
                self.wfile.flush()
                if slow:
                    time.sleep(1.0 / len(pieces))
            self.wfile.write(b"data: [DONE]\n\n")

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


def _frame(kind: str, model: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-stand-in", "object": kind, "created": 0, "model": model, "choices": [choice]}
