# ruff: noqa: E501 (tables and small programs read better in one line)
"""A small OpenAI-compatible server that streams: the demo's and the tests' model behind the gateway.

It answers with its own name, so that a test sees which deployment served. Faults are switched at run time through
`POST /control {"mode": ...}`: ok, error (500), hang, rubbish (no JSON), shape (JSON of no API), locked (401), refuse (400), cut (the
connection ends in the middle of the answer), begins (it ends when a stream has begun, before its first part).

Run it alone with `python -m tests.support.upstream --port 0 --name small`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_BODY = 16 * 1024 * 1024  # bytes
SCRIPTED: dict[str, tuple[int, Any]] = {
    "rubbish": (200, b"<html>It works! PROMPT-ECHO</html>"),
    "shape": (200, {"choices": 5, "id": ["PROMPT-ECHO"]}),
    "locked": (401, {"error": {"message": "Incorrect API key provided: PROMPT-ECHO", "code": "invalid_api_key"}}),
    "busy": (429, {"error": {"message": "Rate limit reached: PROMPT-ECHO", "type": "requests", "code": "rate_limit_exceeded"}}),
    "missing": (404, {"error": {"message": "The model `PROMPT-ECHO` does not exist.", "type": "NotFoundError", "code": 404}}),
    "refuse": (400, {"error": {"message": "too many tokens", "type": "invalid_request_error", "param": None, "code": None}}),
}  # fmt: skip


@dataclass
class Upstream:
    """A running upstream.

    Attributes:
        name: what it answers with.
        mode: ok, error, hang, rubbish, shape, locked, busy, missing, refuse, cut or begins.
        requests: the parsed bodies, in order.
        keys: the bearer tokens they came with, in order.
        chunk_delay_s: pause between two chunks of a stream.
        delay_s: pause before anything is answered.
        words: of an answer.
        retry_after: header of an answer that is an error.
        headers: the requests' headers by lower-case name, in order.
        held: while it is set, a stream stops after its first chunk.
    """

    name: str
    mode: str = "ok"
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    chunk_delay_s: float = 0.0
    delay_s: float = 0.0
    words: int = 5
    retry_after: str = ""
    port: int = 0
    held: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        """Base URL for `api_base`."""
        return f"http://127.0.0.1:{self.port}/v1"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512
    allow_reuse_address = True


def _handler(upstream: Upstream, stop: threading.Event) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            return

        def do_GET(self) -> None:
            if self.path.endswith("/models"):
                self._json(200, {"object": "list", "data": [{"id": upstream.name, "object": "model"}]})
            else:
                self._json(200, {"name": upstream.name, "mode": upstream.mode, "requests": len(upstream.requests)})

        def do_POST(self) -> None:
            length = min(int(self.headers.get("content-length", 0)), MAX_BODY)
            body = json.loads(self.rfile.read(length) or b"{}")
            if self.path == "/control":
                upstream.mode = body.get("mode", upstream.mode)
                upstream.chunk_delay_s = body.get("chunk_delay_s", upstream.chunk_delay_s)
                self._json(200, {"mode": upstream.mode})
                return
            upstream.requests.append(body)
            upstream.headers.append({name.lower(): value for name, value in self.headers.items()})
            upstream.keys.append(self.headers.get("authorization", "").removeprefix("Bearer "))
            if upstream.mode == "error":
                self._json(500, {"error": {"message": "the upstream is broken", "type": "server_error"}})
                return
            if upstream.mode == "hang":
                stop.wait(600)
                return
            if upstream.mode in SCRIPTED:
                self._json(*SCRIPTED[upstream.mode])
                return
            time.sleep(upstream.delay_s)
            if upstream.mode == "cut" and not body.get("stream"):
                self.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{")
                self._cut()
                return
            if self.path.endswith("/embeddings"):
                self._json(200, {"object": "list", "model": body.get("model"), "usage": {"prompt_tokens": 1, "total_tokens": 1},
                                 "data": [{"object": "embedding", "index": 0, "embedding": [0.0, 1.0]}]})  # fmt: skip
            elif self.path.endswith("/responses"):
                self._respond(_response(body, " ".join(_words(upstream)), upstream), stream=bool(body.get("stream")))
            elif body.get("stream"):
                self._stream(body)
            else:
                whole = _completion if self._is_chat() else _text_completion
                self._json(200, whole(body, " ".join(_words(upstream)), upstream))

        def _is_chat(self) -> bool:
            return not self.path.endswith("/completions") or self.path.endswith("/chat/completions")

        def _begin_stream(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()

        def _respond(self, whole: dict[str, Any], *, stream: bool) -> None:
            """The Responses API: one document, or the events that end with it."""
            if not stream:
                self._json(200, whole)
                return
            self._begin_stream()
            begun = {**whole, "status": "in_progress", "output": [], "usage": None}
            text = whole["output"][0]["content"][0]["text"]
            place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
            message = whole["output"][0]
            empty = {"type": "output_text", "text": "", "annotations": []}
            opened = {**message, "status": "in_progress", "content": []}
            events = [
                {"type": "response.created", "response": begun},
                {"type": "response.output_item.added", "output_index": 0, "item": opened},
                {"type": "response.content_part.added", **place, "part": empty},
                *({"type": "response.output_text.delta", **place, "delta": f"{word} "} for word in text.split()),
                {"type": "response.output_text.done", **place, "text": text},
                {"type": "response.content_part.done", **place, "part": message["content"][0]},
                {"type": "response.output_item.done", "output_index": 0, "item": message},
                {"type": "response.completed", "response": whole},
            ]
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for number, event in enumerate(events):
                    self._chunk({**event, "sequence_number": number})
                self.wfile.write(b"0\r\n\r\n")

        def _stream(self, body: dict[str, Any]) -> None:
            self._begin_stream()
            chat = self._is_chat()
            identity = f"chatcmpl-{uuid.uuid4().hex}"
            if upstream.mode == "begins":
                self._cut()
                return
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                for word in [*_words(upstream), None]:
                    said = {"text": "" if word is None else f"{word} "} if not chat else {
                        "delta": {} if word is None else {"role": "assistant", "content": f"{word} "}}  # fmt: skip
                    choice = {"index": 0, **said, "finish_reason": "stop" if word is None else None}
                    self._chunk({"id": identity, "object": "chat.completion.chunk" if chat else "text_completion",
                                 "created": int(time.time()), "model": body.get("model"), "choices": [choice]})  # fmt: skip
                    if upstream.mode == "cut":
                        self._cut()
                        return
                    time.sleep(upstream.chunk_delay_s)
                    while upstream.held.is_set() and not stop.is_set():
                        time.sleep(0.01)
                if (body.get("stream_options") or {}).get("include_usage"):
                    self._chunk({"id": identity, "object": "chat.completion.chunk", "created": int(time.time()),
                                 "model": body.get("model"), "choices": [], "usage": _usage(upstream)})  # fmt: skip
                self._write(b"data: [DONE]\n\n")
                self.wfile.write(b"0\r\n\r\n")

        def _cut(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def _chunk(self, value: dict[str, Any]) -> None:
            self._write(b"data: " + json.dumps(value).encode() + b"\n\n")

        def _write(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            self.wfile.flush()

        def _json(self, status: int, value: Any) -> None:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                if status >= 400 and upstream.retry_after:
                    self.send_header("retry-after", upstream.retry_after)
                self.end_headers()
                self.wfile.write(data)

    return Handler


def _words(upstream: Upstream) -> list[str]:
    return [f"answer-of-{upstream.name}", *(f"w{n}" for n in range(1, upstream.words))]


def _usage(upstream: Upstream) -> dict[str, int]:
    return {"prompt_tokens": 7, "completion_tokens": upstream.words, "total_tokens": 7 + upstream.words}


def _completion(body: dict[str, Any], text: str, upstream: Upstream) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text}
    forced = body.get("tool_choice")
    if isinstance(forced, dict):  # the client demands that its tool be called
        called = {"name": forced["function"]["name"], "arguments": json.dumps({"by": upstream.name})}
        message = {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": called}],
        }
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if "tool_calls" in message else "stop"}
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body.get("model"),
        "choices": [choice],
        "usage": _usage(upstream),
    }


def _text_completion(body: dict[str, Any], text: str, upstream: Upstream) -> dict[str, Any]:
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": body.get("model"),
        "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": "stop"}],
        "usage": _usage(upstream),
    }


def _response(body: dict[str, Any], text: str, upstream: Upstream) -> dict[str, Any]:
    said = {"type": "output_text", "text": text, "annotations": []}
    message = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [said]}
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "model": body.get("model"),
        "output": [message],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {"input_tokens": 7, "output_tokens": upstream.words, "total_tokens": 7 + upstream.words},
    }


@contextlib.contextmanager
def upstream(name: str, *, port: int = 0, **options: Any) -> Iterator[Upstream]:
    """Serve on loopback until the block ends.

    Args:
        name: what it answers with.
        port: 0 for a free one.
        options: fields of `Upstream`.
    """
    state, stop = Upstream(name, **options), threading.Event()
    server = _Server(("127.0.0.1", port), _handler(state, stop))
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        stop.set()
        server.shutdown()
        server.server_close()


def main() -> None:
    """Run one upstream until interrupted; the port is printed as the first line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--chunk-delay-s", type=float, default=0.0)
    arguments = parser.parse_args()
    with upstream(arguments.name, port=arguments.port, chunk_delay_s=arguments.chunk_delay_s) as running:
        print(running.port, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
